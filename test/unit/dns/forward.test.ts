import {createSocket} from 'node:dgram';
import {mkdtemp, rename, rm, symlink, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {answersDns, transferOfAll} from '../../../src/capture/listeners.ts';
import {parseResolvConf} from '../../../src/dns/resolv-conf.ts';
import {chooseServers} from '../../../src/dns/upstreams.ts';
import {watchFiles} from '../../../src/dns/watch-files.ts';
import {
	ask,
	askUdp,
	closedPort,
	meshTable,
	question,
	readAnswer,
	replyWith,
	startFakeServer,
	startWorld,
	until,
} from './world.ts';

const at = (port: number) => ({address: '127.0.0.1', port});
const wait = (ms: number) => new Promise(resolve => setTimeout(resolve, ms));

/** A port of 127.0.0.1 on which nobody answers: bound, and never read. */
async function silentPort(t: {teardown: (end: () => void) => void}): Promise<number> {
	const socket = createSocket('udp4');
	await new Promise<void>(resolve => socket.bind(0, '127.0.0.1', resolve));
	t.teardown(() => socket.close());
	return socket.address().port;
}

test('upstreams › a server that nobody runs costs no time: the next is asked at once', async t => {
	const good = await startFakeServer(t, query => replyWith(query, 0, ['192.0.2.1']));
	const world = await startWorld(t, {upstreams: [at(await closedPort()), at(good.port)]}, {resolvConf: ''});
	t.deepEqual((await ask(world, 'www.example.com')).values, ['192.0.2.1']);
	await until(() => world.dns.status().upstreams[0]!.state === 'silent', 'the first is known for silent');
});

test('upstreams › a server that the network does not lead to costs no time', async t => {
	const good = await startFakeServer(t, query => replyWith(query, 0, ['192.0.2.1']));
	// Without the right to broadcast, the kernel refuses this at once and nothing leaves the machine.
	const unreachable = {address: '255.255.255.255', port: 53};
	const world = await startWorld(t, {upstreams: [unreachable, at(good.port)]}, {resolvConf: ''});
	for (let round = 0; round < 10; round++)
		t.deepEqual((await ask(world, `${round}.example.com`)).values, ['192.0.2.1']);
	t.is(world.dns.status().upstreams[0]!.state, 'silent');
});

test('upstreams › a silent server delays the first questions a little and later ones not at all', async t => {
	const good = await startFakeServer(t, query => replyWith(query, 0, ['192.0.2.1']));
	const world = await startWorld(t, {upstreams: [at(await silentPort(t)), at(good.port)]}, {resolvConf: ''});
	for (let round = 0; round < 3; round++) t.deepEqual((await ask(world, `${round}.example.com`)).values, ['192.0.2.1']);
	await until(() => world.dns.status().upstreams[0]!.state === 'silent', 'the first is known for silent');
	const {asked} = world.dns.status().upstreams[0]!;
	for (let round = 3; round < 20; round++) await ask(world, `${round}.example.com`);
	// Probes go on, questions do not.
	t.true(world.dns.status().upstreams[0]!.asked - asked <= 2);
});

test('upstreams › rules are not kept out by servers that are silent: the agent itself answers', async t => {
	const world = await startWorld(t, {upstreams: [at(await silentPort(t))], timeoutMs: 10_000}, {resolvConf: ''});
	t.true(await answersDns('127.0.0.1', world.port, transferOfAll));
	t.false(await answersDns('127.0.0.1', await silentPort(t), transferOfAll));
});

test('upstreams › a silent server that answers again is asked first again', async t => {
	let isSilent = true;
	const first = await startFakeServer(t, query => (isSilent ? undefined : replyWith(query, 0, ['192.0.2.1'])));
	const second = await startFakeServer(t, query => replyWith(query, 0, ['192.0.2.2']));
	const world = await startWorld(t, {upstreams: [at(first.port), at(second.port)]}, {resolvConf: ''});
	for (let round = 0; round < 3; round++) t.deepEqual((await ask(world, `${round}.example.com`)).values, ['192.0.2.2']);
	await until(() => world.dns.status().upstreams[0]!.state === 'silent', 'it is known for silent');
	isSilent = false;
	await until(() => world.dns.status().upstreams[0]!.state === 'answering', 'a probe finds it');
	t.deepEqual((await ask(world, 'again.example.com')).values, ['192.0.2.1']);
});

test('upstreams › a slow server is raced, and its late answers do no harm', async t => {
	const slow = await startFakeServer(t, async query => {
		await wait(600);
		return replyWith(query, 0, ['192.0.2.66']);
	});
	const good = await startFakeServer(t, query => replyWith(query, 0, ['192.0.2.1']));
	const world = await startWorld(t, {upstreams: [at(slow.port), at(good.port)]}, {resolvConf: ''});
	for (let round = 0; round < 5; round++) t.deepEqual((await ask(world, `${round}.example.com`)).values, ['192.0.2.1']);
	await until(
		() => !['untried', 'answering'].includes(world.dns.status().upstreams[0]!.state),
		'it is not asked first',
	);
});

test('upstreams › a failure of one server is asked of the next; no such name is an answer', async t => {
	const broken = await startFakeServer(t, query => replyWith(query, query.key.includes('gone') ? 3 : 2));
	const good = await startFakeServer(t, query => replyWith(query, 0, ['192.0.2.1']));
	const world = await startWorld(t, {upstreams: [at(broken.port), at(good.port)]}, {resolvConf: ''});
	t.deepEqual((await ask(world, 'www.example.com')).values, ['192.0.2.1']);
	t.is((await ask(world, 'gone.example.com')).code, 'NXDOMAIN');
	t.deepEqual(good.asked, ['www.example.com']);
});

test('upstreams › when all fail, the answer says so in time', async t => {
	const world = await startWorld(
		t,
		{upstreams: [at(await silentPort(t)), at(await silentPort(t))], timeoutMs: 300},
		{resolvConf: ''},
	);
	t.is((await ask(world, 'www.example.com')).code, 'SERVFAIL');
	t.like(world.dns.status().queries, {'upstream timeout': 1});
	const none = await startWorld(t, {upstreams: [at(await closedPort())]}, {resolvConf: ''});
	t.is((await ask(none, 'www.example.com')).code, 'SERVFAIL');
});

test('upstreams › the same question in flight is asked once, and each gets its own id', async t => {
	let release = () => {};
	const held = new Promise<void>(resolve => {
		release = resolve;
	});
	const server = await startFakeServer(t, async query => {
		await held;
		return replyWith(query, 0, ['192.0.2.1']);
	});
	const world = await startWorld(t, {upstreams: [at(server.port)]}, {resolvConf: ''});
	const messages = Array.from({length: 20}, () => question('www.example.com'));
	const answers = messages.map(message => askUdp(world.port, message));
	await until(() => world.dns.status().inFlight === 1 && server.asked.length >= 1, 'the question is in flight');
	release();
	for (const [index, answer] of (await Promise.all(answers)).entries())
		t.is(answer!.readUInt16BE(0), messages[index]!.readUInt16BE(0));
	t.deepEqual([...new Set(server.asked)], ['www.example.com']);
	t.true(server.asked.length <= 3, 'once, and again when the first packet may be lost');
});

test('upstreams › an answer to another question, or with another id, is not taken', async t => {
	const server = await startFakeServer(t, async query => {
		if (query.key.includes('onramp')) return replyWith(query, 0);
		const forged = replyWith(query, 0, ['192.0.2.66']);
		if (query.key.includes('other-name')) forged[14]! ^= 0x01;
		else if (query.key.includes('other-type')) forged[query.nameEnd + 1] = 28;
		else if (query.key.includes('other-id')) forged.writeUInt16BE(forged.readUInt16BE(0) ^ 1, 0);
		else forged[2]! &= 0x7f;
		return forged;
	});
	const world = await startWorld(t, {upstreams: [at(server.port)], timeoutMs: 250}, {resolvConf: ''});
	for (const name of ['other-name', 'other-type', 'other-id', 'no-response'])
		t.is((await ask(world, `${name}.example.com`)).code, 'SERVFAIL', name);
});

test('upstreams › ids and ports cannot be foretold', async t => {
	const ports = new Set<number>();
	const ids: number[] = [];
	const socket = createSocket('udp4');
	t.teardown(() => socket.close());
	socket.on('message', (message, from) => {
		ports.add(from.port);
		ids.push(message.readUInt16BE(0));
		message[2] = 0x81;
		message[3] = 0x80;
		socket.send(message, from.port, from.address);
	});
	await new Promise<void>(resolve => socket.bind(0, '127.0.0.1', resolve));
	const world = await startWorld(t, {upstreams: [at(socket.address().port)]}, {resolvConf: ''});
	for (let round = 0; round < 60; round++) await ask(world, `${round}.example.com`);
	t.true(ports.size >= 4);
	const steps = new Set(ids.map((id, index) => id - (ids[index - 1] ?? 0)));
	t.true(steps.size > 55, 'no counting');
});

test('upstreams › an answer cut short is passed on as such, and TCP is asked over TCP', async t => {
	const transports: string[] = [];
	const server = await startFakeServer(t, (query, isTcp) => {
		if (query.key.includes('onramp')) return replyWith(query, 0);
		transports.push(isTcp ? 'tcp' : 'udp');
		const reply = replyWith(query, 0, isTcp ? ['192.0.2.1', '192.0.2.2'] : []);
		if (!isTcp) reply[2]! |= 0x02;
		return reply;
	});
	const world = await startWorld(t, {upstreams: [at(server.port)]}, {resolvConf: ''});
	t.true((await ask(world, 'large.example.com')).isTruncated);
	const {records, tried} = await world.dns.lookup({name: 'large.example.com'});
	t.is(records.length, 2, 'dns lookup asks again over TCP');
	t.is(tried.length, 1);
	t.deepEqual(transports, ['udp', 'udp', 'tcp']);
});

test('upstreams › EDNS and unknown types pass through as they are', async t => {
	let seen: Buffer | undefined;
	const server = await startFakeServer(t, query => {
		if (query.key.includes('onramp')) return replyWith(query, 0);
		seen = query.message;
		return replyWith(query, 0);
	});
	const world = await startWorld(t, {upstreams: [at(server.port)]}, {resolvConf: ''});
	const message = question('www.example.com', 'TYPE65280');
	message[message.length - 4] = 0x80; // DO
	await askUdp(world.port, message);
	t.deepEqual(seen!.subarray(2), message.subarray(2));
});

test('upstreams › past the most in flight, questions are refused at once', async t => {
	const world = await startWorld(
		t,
		{upstreams: [at(await silentPort(t))], mostInFlight: 10, timeoutMs: 3000},
		{resolvConf: ''},
	);
	world.dns.setNameTable(meshTable);
	const waiting = Array.from({length: 10}, (_, index) => ask(world, `${index}.example.com`));
	await until(() => world.dns.status().inFlight === 10, 'all are in flight');
	t.is((await ask(world, 'one-more.example.com')).code, 'SERVFAIL');
	t.like(world.dns.status().queries, {'upstream overload': 1});
	t.deepEqual((await ask(world, 'cart')).values, ['10.0.0.2'], 'the mesh answers all the while');
	for (const {code} of await Promise.all(waiting)) t.is(code, 'SERVFAIL');
	t.is(world.dns.status().inFlight, 0);
});

test('upstreams › a server that asks us in turn is found and not used', async t => {
	// Sends everything back to us, as a stub does whose own questions are caught.
	const port = {ours: 0};
	const looping = await startFakeServer(t, async query => {
		const answer = await askUdp(port.ours, query.message, 1000);
		return answer;
	});
	const good = await startFakeServer(t, query => replyWith(query, 0, ['192.0.2.1']));
	const free = await closedPort();
	port.ours = free;
	const world = await startWorld(t, {port: free, upstreams: [at(looping.port), at(good.port)]}, {resolvConf: ''});
	await until(() => world.dns.status().upstreams[0]!.state === 'loop', 'the loop is found');
	const before = looping.asked.length;
	t.deepEqual((await ask(world, 'www.example.com')).values, ['192.0.2.1']);
	t.is(looping.asked.length, before);
});

test('upstreams › a loop is found also when the first probes get nowhere', async t => {
	const port = {ours: 0};
	let isDeaf = true;
	const looping = await startFakeServer(t, query =>
		isDeaf ? replyWith(query, 2) : askUdp(port.ours, query.message, 1000),
	);
	const free = await closedPort();
	port.ours = free;
	const world = await startWorld(t, {port: free, upstreams: [at(looping.port)]}, {resolvConf: ''});
	await until(() => world.dns.status().upstreams[0]!.answered > 0, 'a probe was answered by a failure');
	isDeaf = false;
	await until(() => world.dns.status().upstreams[0]!.state === 'loop', 'the loop is found');
	t.is((await ask(world, 'www.example.com')).code, 'SERVFAIL');
});

test('upstreams › a server that is ourselves is never asked', async t => {
	const port = await closedPort();
	const world = await startWorld(t, {port, upstreams: [at(port)]}, {resolvConf: ''});
	t.deepEqual(world.dns.status().upstreams, []);
	t.is((await ask(world, 'www.example.com')).code, 'SERVFAIL');
	t.regex(world.dns.status().warnings.join(), /no server can be asked/);
});

test('resolv.conf › is read as the C library reads it', t => {
	t.deepEqual(
		parseResolvConf(
			'# comment\nnameserver 192.0.2.1 # a server\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver bad\n' +
				' nameserver 192.0.2.9\ndomain old.example\nsearch corp.example  b.example.\t.\noptions rotate use-vc timeout:3 ndots:5\n',
		),
		{
			servers: ['192.0.2.1', 'fe80::1%eth0'],
			search: ['\x04corp\x07example\0', '\x01b\x07example\0'],
			isRotating: true,
			isTcpOnly: true,
		},
	);
	t.deepEqual(parseResolvConf('').servers, ['127.0.0.1'], 'none means the one of this machine');
});

test('resolv.conf › the servers behind the stub of systemd-resolved are spares, unless the stub would ask us', t => {
	const stub = parseResolvConf('nameserver 127.0.0.53\n');
	const real = parseResolvConf('nameserver 192.0.2.1\n');
	const of = (isStubAvoided: boolean, conf = stub, resolved: typeof real | undefined = real) =>
		chooseServers(conf, resolved, {isStubAvoided}).map(({server, isSpare}) => [server.address, isSpare]);
	t.deepEqual(of(false), [
		['127.0.0.53', false],
		['192.0.2.1', true],
	]);
	t.deepEqual(of(true), [['192.0.2.1', false]]);
	t.deepEqual(
		of(true, stub, parseResolvConf('nameserver 127.0.0.1\n')),
		[['127.0.0.53', false]],
		'better than nothing',
	);
	t.deepEqual(of(false, real), [['192.0.2.1', false]]);
});

test('resolv.conf › is followed when it is written, replaced, or its link is moved', async t => {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-resolv-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	const world = await startWorld(t, {}, {resolvConf: 'nameserver 192.0.2.1\nsearch a.example\n'});
	const path = join(world.directory, 'resolv.conf');
	const servers = () => world.dns.status().upstreams.map(({server}) => server);
	await until(() => servers().join() === '192.0.2.1', 'the first content is used');
	t.deepEqual(world.dns.status().searchDomains, ['a.example']);
	await writeFile(path, 'nameserver 192.0.2.2\n');
	await until(() => servers().join() === '192.0.2.2', 'it is written to');
	await writeFile(`${path}.new`, 'nameserver 192.0.2.3\nnameserver 192.0.2.2\n');
	await rename(`${path}.new`, path);
	await until(() => servers().join() === '192.0.2.3,192.0.2.2', 'it is replaced');
	await writeFile(join(directory, 'target'), 'nameserver 192.0.2.4\n');
	await symlink(join(directory, 'target'), `${path}.link`);
	await rename(`${path}.link`, path);
	await until(() => servers().join() === '192.0.2.4', 'it becomes a link');
	await writeFile(join(directory, 'target'), 'nameserver 192.0.2.5\n');
	await until(() => servers().join() === '192.0.2.5', 'what the link leads to is written to');
	await rm(path);
	await until(
		() => servers().join() === '127.0.0.1',
		'it is gone: the server of this machine, as the C library has it',
	);
	t.regex(world.dns.status().warnings.join(), /there is no .*resolv\.conf/);
});

test('resolv.conf › one that cannot be read leaves the servers as they were', async t => {
	const changes: string[] = [];
	const directory = await mkdtemp(join(tmpdir(), 'onramp-resolv-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	const path = join(directory, 'resolv.conf');
	await writeFile(path, 'a');
	const watch = watchFiles([path], ([look]) => changes.push(look!.kind));
	t.teardown(() => watch.close());
	await watch.look();
	await rm(path);
	// Reading a directory fails for root as well.
	await symlink(directory, path);
	await until(() => changes.at(-1) === 'unreadable', 'it is told apart from an absent one');
	t.is(changes[0], 'text');
});

test('upstreams › resolv.conf can ask for TCP always', async t => {
	let connections = 0;
	const server = await startFakeServer(t, (query, isTcp) => {
		if (isTcp) connections++;
		return replyWith(query, 0, ['192.0.2.1']);
	});
	const world = await startWorld(t, {upstreams: [at(server.port)]}, {resolvConf: 'options use-vc\n'});
	await until(() => world.dns.status().upstreamsFrom === 'configuration', 'it is started');
	await world.dns.lookup({name: 'first.example.com'});
	t.deepEqual((await ask(world, 'www.example.com')).values, ['192.0.2.1']);
	t.true(connections >= 2, 'use-vc is heeded');
	t.is(readAnswer((await askUdp(world.port, question('x.example.com')))!).code, 'NOERROR');
});
