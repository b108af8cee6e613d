import {Resolver} from 'node:dns/promises';
import {connect} from 'node:net';
import {networkInterfaces} from 'node:os';
import test from 'ava';
import {encodeName, renderQuery} from '../../../src/dns/message.ts';
import {
	ask,
	askUdp,
	encodeTable,
	meshTable,
	plainQuestion,
	question,
	readAnswer,
	replyWith,
	startFakeServer,
	startWorld,
	until,
	type World,
} from './world.ts';

const startMesh = async (t: Parameters<typeof startWorld>[0], config = {}, resolvConf = ''): Promise<World> => {
	const world = await startWorld(t, config, {resolvConf});
	world.dns.setNameTable(meshTable);
	return world;
};

/** Would answer anything; a name of the mesh that gets here has leaked. */
const startUpstream = (t: Parameters<typeof startWorld>[0]) =>
	startFakeServer(t, query => replyWith(query, 0, ['192.0.2.1']));

test('dns › answers names of the mesh with their addresses and a short life', async t => {
	const world = await startMesh(t);
	const answer = await ask(world, 'echo.demo.mesh');
	t.like(answer, {code: 'NOERROR', isAuthoritative: true, isTruncated: false});
	t.deepEqual(answer.records, [{name: 'echo.demo.mesh', ttlSeconds: 30, type: 'A', value: '240.240.0.1'}]);
	t.deepEqual((await ask(world, 'echo.demo.mesh', 'AAAA')).values, ['2001:2::1']);
	t.true((answer.message[3]! & 0x80) !== 0, 'recursion is available, or Go takes empty answers for a lame server');
});

test('dns › the case of a question is kept, and does not matter', async t => {
	const world = await startMesh(t);
	const answer = await ask(world, 'EchO.deMo.mesh');
	t.deepEqual(answer.values, ['240.240.0.1']);
	t.is(answer.records[0]!.name, 'EchO.deMo.mesh');
});

for (const [name, value] of [
	['reviews.default.svc.cluster.local', '10.0.0.1'],
	['reviews.default.svc', '10.0.0.1'],
	['reviews.default', '10.0.0.1'],
	['reviews.alias', '10.0.0.1'],
	['cart', '10.0.0.2'],
	['a.wild.mesh', '240.240.0.3'],
	['a.b.wild.mesh', '240.240.0.3'],
	['a.deep.wild.mesh', '240.240.0.4'],
] as const)
	test(`dns › ${name} is a name of the mesh`, async t => {
		const world = await startMesh(t);
		t.deepEqual((await ask(world, name)).values, [value]);
	});

test('dns › the bare name of a service in another namespace is not one of the mesh', async t => {
	const upstream = await startUpstream(t);
	const world = await startMesh(t, {upstreams: [{address: '127.0.0.1', port: upstream.port}]});
	t.deepEqual((await ask(world, 'reviews')).values, ['192.0.2.1']);
});

test('dns › a name with a search domain behind it is an alias of the name', async t => {
	const world = await startMesh(t, {}, 'search corp.example other.example\n');
	for (const domain of ['corp.example', 'other.example']) {
		const {records} = await ask(world, `cart.${domain}`);
		t.deepEqual(
			records.map(({name, type, value}) => [name, type, value]),
			[
				[`cart.${domain}`, 'CNAME', 'cart'],
				['cart', 'A', '10.0.0.2'],
			],
		);
	}
	t.deepEqual((await ask(world, 'x.wild.mesh.corp.example')).values, ['x.wild.mesh', '240.240.0.3']);
});

test('dns › a family that a host does not have is no data, never no such name', async t => {
	const world = await startMesh(t);
	for (const [name, type] of [
		['v4.demo.mesh', 'AAAA'],
		['a.wild.mesh', 'AAAA'],
		['cart.shop.svc.cluster.local', 'AAAA'],
		['v4.demo.mesh', 'HTTPS'],
		['v4.demo.mesh', 'TXT'],
		['v4.demo.mesh', 'SRV'],
	] as const) {
		const answer = await ask(world, name, type);
		t.like(answer, {code: 'NOERROR', isAuthoritative: true, records: [], authorities: 1}, `${name} ${type}`);
	}
});

test('dns › nothing of the mesh is asked of other servers', async t => {
	const upstream = await startUpstream(t);
	const world = await startMesh(t, {upstreams: [{address: '127.0.0.1', port: upstream.port}]}, 'search corp.example\n');
	const names = ['echo.demo.mesh', 'cart', 'cart.corp.example', 'a.wild.mesh', 'reviews.default.svc'];
	for (const name of names)
		for (const type of ['A', 'AAAA', 'TXT', 'HTTPS', 'SRV', 'MX', 'ANY']) await ask(world, name, type);
	t.is((await ask(world, 'typo.shop.svc.cluster.local')).code, 'NXDOMAIN');
	t.is((await ask(world, 'shop.svc.cluster.local')).code, 'NOERROR', 'there are names below it');
	t.is((await ask(world, '1.0.240.240.in-addr.arpa', 'PTR')).values[0], 'echo.demo.mesh');
	t.deepEqual(upstream.asked, []);
	t.deepEqual((await ask(world, 'www.example.com')).values, ['192.0.2.1']);
	t.deepEqual(upstream.asked, ['www.example.com']);
});

test('dns › names of the mesh are not given away by updates or other classes either', async t => {
	const upstream = await startUpstream(t);
	const world = await startMesh(t, {upstreams: [{address: '127.0.0.1', port: upstream.port}]});
	const update = question('echo.demo.mesh', 'SOA');
	update[2] = 0x28; // opcode 5
	t.is(readAnswer((await askUdp(world.port, update))!).code, 'REFUSED');
	const chaos = plainQuestion('echo.demo.mesh', 'TXT');
	chaos[chaos.length - 1] = 3;
	t.is(readAnswer((await askUdp(world.port, chaos))!).code, 'REFUSED');
	t.deepEqual(upstream.asked, []);
});

test('dns › reverse names of the mesh have their names, in both families', async t => {
	const world = await startMesh(t);
	t.deepEqual((await ask(world, '2.0.0.10.in-addr.arpa', 'PTR')).values, ['cart.shop.svc.cluster.local']);
	const nibbles = `1${'.0'.repeat(23)}.2.0.0.0.1.0.0.2.ip6.arpa`;
	t.deepEqual((await ask(world, nibbles, 'PTR')).values, ['echo.demo.mesh']);
});

test('dns › several addresses come in another order each time', async t => {
	const world = await startMesh(t);
	const first = new Set<string>();
	for (let round = 0; round < 100 && first.size < 3; round++) {
		const {values} = await ask(world, 'db.shop.svc.cluster.local');
		t.deepEqual(values.toSorted(), ['10.1.0.1', '10.1.0.2', '10.1.0.3']);
		first.add(values[0]!);
	}
	t.is(first.size, 3);
});

test('dns › what does not fit into a packet is cut, and comes whole over TCP', async t => {
	const world = await startMesh(t);
	const plain = readAnswer((await askUdp(world.port, plainQuestion('many.shop.svc.cluster.local')))!);
	t.true(plain.isTruncated);
	t.true(plain.message.length <= 512);
	t.true(plain.values.length > 20);
	const edns = await ask(world, 'many.shop.svc.cluster.local');
	t.true(edns.isTruncated);
	t.true(edns.message.length > 1000 && edns.message.length <= 1232);
	const [whole] = await askTcp(world.port, [question('many.shop.svc.cluster.local')]);
	t.is(readAnswer(whole!).values.length, 200);
	t.false(readAnswer(whole!).isTruncated);
});

test('dns › EDNS is answered with EDNS, and only then', async t => {
	const world = await startMesh(t);
	t.is((await ask(world, 'echo.demo.mesh')).message.readUInt16BE(10), 1);
	const plain = (await askUdp(world.port, plainQuestion('echo.demo.mesh')))!;
	t.is(plain.readUInt16BE(10), 0);
	const later = question('echo.demo.mesh');
	later[later.length - 5] = 1; // version
	const answer = (await askUdp(world.port, later))!;
	t.is(answer[3]! & 0x0f, 0);
	t.is(answer[answer.length - 6], 1, 'BADVERS is 16, its upper bits stand in OPT');
});

test('dns › connections take many questions at once, cut anywhere', async t => {
	const world = await startMesh(t);
	const questions = Array.from({length: 300}, (_, index) => question(index % 2 === 0 ? 'cart' : 'echo.demo.mesh'));
	const answers = await askTcp(world.port, questions, 7);
	t.deepEqual(
		answers.map(answer => answer.readUInt16BE(0)).toSorted((a, b) => a - b),
		questions.map(message => message.readUInt16BE(0)).toSorted((a, b) => a - b),
	);
});

test('dns › a client that has ended its side still gets its answer', async t => {
	const upstream = await startFakeServer(t, async query => {
		await new Promise(resolve => setTimeout(resolve, 50));
		return replyWith(query, 0, ['192.0.2.1']);
	});
	const world = await startMesh(t, {upstreams: [{address: '127.0.0.1', port: upstream.port}]});
	const [answer] = await askTcp(world.port, [question('www.example.com')], 1000, true);
	t.deepEqual(readAnswer(answer!).values, ['192.0.2.1']);
});

test('dns › the gate opens with the first table, and says what it waits for until then', async t => {
	const world = await startWorld(t, {}, {resolvConf: ''});
	await until(() => /waiting for the name table/.test(world.readiness.states()[0]!.reason), 'the gate says why');
	t.false(world.readiness.isReady);
	world.dns.setNameTable(meshTable);
	t.true(world.readiness.isReady);
});

test('dns › before a table, foreign names are answered and names of the mesh fail for now', async t => {
	const upstream = await startUpstream(t);
	const world = await startWorld(t, {upstreams: [{address: '127.0.0.1', port: upstream.port}]}, {resolvConf: ''});
	t.deepEqual((await ask(world, 'www.example.com')).values, ['192.0.2.1']);
	t.is((await ask(world, 'cart.shop.svc.cluster.local')).code, 'SERVFAIL');
	t.deepEqual(upstream.asked, ['www.example.com']);
});

test('dns › a table that cannot be read leaves the last one in use', async t => {
	const world = await startMesh(t);
	t.throws(() => world.dns.setNameTable(Buffer.from([0x0a, 0x7f, 0x01])));
	t.deepEqual((await ask(world, 'cart')).values, ['10.0.0.2']);
	world.dns.setNameTable(encodeTable({'new.demo.mesh': {addresses: ['240.240.9.9']}}));
	t.deepEqual((await ask(world, 'new.demo.mesh')).values, ['240.240.9.9']);
});

test('dns › a host without addresses is found in the DNS of the world', async t => {
	const upstream = await startUpstream(t);
	const world = await startWorld(t, {upstreams: [{address: '127.0.0.1', port: upstream.port}]}, {resolvConf: ''});
	world.dns.setNameTable(encodeTable({'api.example.com': {addresses: ['not an address']}}));
	t.deepEqual((await ask(world, 'api.example.com')).values, ['192.0.2.1']);
});

test('dns › says who answers a name, and why', async t => {
	const upstream = await startUpstream(t);
	const world = await startMesh(t, {upstreams: [{address: '127.0.0.1', port: upstream.port}]}, 'search corp.example\n');
	const look = (name: string, type?: string) => world.dns.lookup({name, type});
	t.like(await look('echo.demo.mesh'), {
		source: 'mesh',
		code: 'NOERROR',
		why: 'echo.demo.mesh is in the name table (External)',
	});
	t.regex((await look('cart.corp.example')).why, /by search domain for cart$/);
	t.regex((await look('q.wild.mesh')).why, /^\*\.wild\.mesh is in the name table .*by wildcard$/);
	t.like(await look('no.shop.svc.cluster.local'), {source: 'mesh', code: 'NXDOMAIN'});
	const foreign = await look('www.example.com');
	t.like(foreign, {source: 'upstream', code: 'NOERROR', why: 'the mesh does not know the name'});
	t.is(foreign.tried[0]!.server, `127.0.0.1:${upstream.port}`);
	await t.throwsAsync(look('a..b'), {code: 'dns.name_invalid'});
	await t.throwsAsync(look('a', 'NOTYPE'), {code: 'dns.name_invalid'});
	await t.throwsAsync(world.dns.lookup(undefined), {code: 'dns.name_invalid'});
});

test('dns › status and metrics tell what was asked and who answered', async t => {
	const upstream = await startUpstream(t);
	const world = await startMesh(t, {upstreams: [{address: '127.0.0.1', port: upstream.port}]});
	await ask(world, 'echo.demo.mesh');
	await ask(world, 'www.example.com');
	const {names, queries, upstreams, table} = world.dns.status();
	t.is(names, 8);
	t.is(table, 'control plane');
	t.like(queries, {'mesh answered': 1, 'upstream answered': 1});
	t.is(upstreams[0]!.state, 'answering');
	const text = world.metrics.render();
	t.regex(text, /onramp_dns_queries_total\{source="mesh",outcome="answered"\} 1\n/);
	t.regex(text, /onramp_dns_names 8\n/);
	t.regex(text, /onramp_dns_upstream_answers_total\{server="127\.0\.0\.1:\d+"\} \d/);
});

test('dns › both families are listened on, and an address that this machine does not have is left out', async t => {
	const hasIpv6 = Object.values(networkInterfaces()).some(list => list?.some(({address}) => address === '::1'));
	const world = await startWorld(t, {addresses: ['127.0.0.1', '::2', ...(hasIpv6 ? ['::1'] : [])]}, {resolvConf: ''});
	world.dns.setNameTable(meshTable);
	t.true(world.readiness.isReady);
	t.deepEqual(
		world.dns.listeners.map(({address, state}) => [address, state]).toSorted(),
		[['127.0.0.1', 'listening'], ['::2', 'absent'], ...(hasIpv6 ? [['::1', 'listening']] : [])].toSorted(),
	);
	if (!hasIpv6) {
		t.log('skipped: no ::1 here');
		return;
	}
	const resolver = new Resolver();
	resolver.setServers([`[::1]:${world.dns.listeners.find(({address}) => address === '::1')!.port}`]);
	t.deepEqual(await resolver.resolve4('cart'), ['10.0.0.2']);
	t.deepEqual(await resolver.resolve6('echo.demo.mesh'), ['2001:2::1']);
});

test('dns › an address that is taken closes the gate, and is taken as soon as it is free', async t => {
	const other = await startUpstream(t);
	const world = await startWorld(t, {port: other.port}, {resolvConf: ''});
	world.dns.setNameTable(meshTable);
	t.regex(world.readiness.states()[0]!.reason, /somebody else listens there/);
	t.regex(world.readiness.states()[0]!.hint!, /ss -lunp/);
	await other.close();
	await until(() => world.readiness.isReady, 'the gate opens');
	t.is(world.dns.listeners[0]!.state, 'listening');
});

/** Sends questions on one connection, in pieces of so many bytes. */
function askTcp(port: number, questions: readonly Buffer[], pieceBytes = 1000, endsEarly = false): Promise<Buffer[]> {
	return new Promise((resolve, reject) => {
		const socket = connect({port, host: '127.0.0.1', allowHalfOpen: true});
		const answers: Buffer[] = [];
		let data = Buffer.alloc(0);
		socket.on('error', reject);
		socket.setTimeout(10_000, () => reject(new Error(`${answers.length} of ${questions.length} answers came`)));
		socket.on('data', chunk => {
			data = Buffer.concat([data, chunk as Buffer]);
			while (data.length >= 2 && data.length >= 2 + data.readUInt16BE(0)) {
				const end = 2 + data.readUInt16BE(0);
				answers.push(data.subarray(2, end));
				data = data.subarray(end);
			}
			if (answers.length < questions.length) return;
			socket.destroy();
			resolve(answers);
		});
		const all = Buffer.concat(
			questions.flatMap(message => {
				const head = Buffer.alloc(2);
				head.writeUInt16BE(message.length);
				return [head, message];
			}),
		);
		for (let position = 0; position < all.length; position += pieceBytes)
			socket.write(all.subarray(position, position + pieceBytes));
		if (endsEarly) socket.end();
	});
}

test('dns › a name is read as it is written on the wire', t => {
	t.is(encodeName('a.Bc.'), '\x01a\x02bc\0');
	t.is(encodeName('.'), '\0');
	t.is(encodeName(''), undefined);
	t.is(encodeName('a..b'), undefined);
	t.is(encodeName('x'.repeat(64)), undefined);
	t.is(encodeName(Array.from({length: 128}, () => 'a').join('.')), undefined);
	t.is(encodeName(Array.from({length: 127}, () => 'a').join('.'))!.length, 255);
	t.is(renderQuery(1, '\0', 2).length, 12 + 5 + 11);
});
