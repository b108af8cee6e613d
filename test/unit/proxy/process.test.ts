import {chmod, mkdtemp, rm, writeFile} from 'node:fs/promises';
import {createServer} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {AgentError, type ErrorCode} from '../../../src/errors.ts';
import {findRefusedFlag, renderArguments} from '../../../src/proxy/arguments.ts';
import {checkBinary, checkVersion} from '../../../src/proxy/binary.ts';
import {describeExit, hintForExit} from '../../../src/proxy/exit-report.ts';
import {findByArguments, identify, startTimeOf} from '../../../src/proxy/linux-process.ts';
import {errorLogPath, readTail} from '../../../src/proxy/log-file.ts';
import {checkPortsFree, overlaps, parseListening} from '../../../src/proxy/ports.ts';
import {loadRecord, saveRecord} from '../../../src/proxy/record.ts';

async function folderOf(t: {teardown(fn: () => Promise<void>): void}): Promise<string> {
	const folder = await mkdtemp(join(tmpdir(), 'onramp-process-'));
	t.teardown(() => rm(folder, {recursive: true, force: true}));
	return folder;
}

const config = {
	bootstrapPath: '/run/onramp/envoy.json',
	logPath: '/var/log/onramp/envoy.log',
	drainMs: 45_000,
	concurrency: 2,
	logLevel: 'warning',
	componentLogLevel: '',
	extraArguments: ['--enable-core-dump'],
};

test('arguments › hold what keeps envoy independent of the agent, and end with the extra ones', t => {
	const args = renderArguments({config, addresses: ['10.0.0.1', 'fd00::1'], refusedFlags: []});
	t.is(
		args.join(' '),
		'-c /run/onramp/envoy.json --disable-hot-restart --drain-time-s 45 --drain-strategy immediate ' +
			'--local-address-ip-version v4 --file-flush-interval-msec 1000 --allow-unknown-static-fields ' +
			'--skip-deprecated-logs -l warning --concurrency 2 --log-path /var/log/onramp/envoy.log --enable-core-dump',
	);
});

test('arguments › prefer IPv6 only when there is no IPv4 address', t => {
	t.true(
		renderArguments({config, addresses: ['fd00::1'], refusedFlags: []})
			.join(' ')
			.includes('version v6'),
	);
	t.true(renderArguments({config, addresses: [], refusedFlags: []}).join(' ').includes('version v4'));
});

test('arguments › leave out an optional flag with its value, and 0 workers means as many as processors', t => {
	const args = renderArguments({
		config: {...config, concurrency: 0},
		addresses: [],
		refusedFlags: ['--file-flush-interval-msec'],
	});
	t.false(args.includes('--file-flush-interval-msec'));
	t.false(args.includes('1000'));
	t.false(args.includes('--concurrency'));
});

test('refused flag › is found by the line of the complaint, not by the usage text', t => {
	const usage = ['Brief USAGE:', '   envoy [--skip-deprecated-logs]', "--no-such -- Couldn't find match for argument"];
	t.is(findRefusedFlag(usage), undefined);
	t.is(findRefusedFlag(["--skip-deprecated-logs -- Couldn't find match for argument"]), '--skip-deprecated-logs');
});

const unusable = test.macro({
	title: (_, what) => `binary › ${what}`,
	async exec(t, _what: string, content: string | Buffer, mode: number, code: ErrorCode, message: RegExp) {
		const path = join(await folderOf(t), 'envoy');
		await writeFile(path, content);
		await chmod(path, mode);
		const error = t.throws(() => checkBinary(path, 'x64'), {instanceOf: AgentError, message});
		t.is(error?.code, code);
		t.truthy(error?.hint);
	},
});

function elf(machine: number): Buffer {
	const head = Buffer.alloc(64);
	head.write('\x7fELF', 'latin1');
	head.writeUInt16LE(machine, 18);
	return head;
}

test(
	unusable,
	'for another processor is told from a broken one',
	elf(183),
	0o755,
	'proxy.binary_unusable',
	/another processor/,
);
test(unusable, 'that is a web page saved as a program', '<html>', 0o755, 'proxy.binary_unusable', /not a program/);
test(unusable, 'that is empty', '', 0o755, 'proxy.binary_unusable', /not a program/);
test(unusable, 'without the right to execute', elf(62), 0o644, 'proxy.binary_unusable', /not executable/);

test('binary › that is missing, or in a path through a file', async t => {
	const folder = await folderOf(t);
	await writeFile(join(folder, 'file'), '');
	for (const path of [join(folder, 'envoy'), join(folder, 'file', 'envoy')]) {
		t.is(t.throws(() => checkBinary(path), {instanceOf: AgentError})?.code, 'proxy.binary_missing');
	}
});

test('binary › one that was replaced is told from the one before', async t => {
	const path = join(await folderOf(t), 'envoy');
	await writeFile(path, elf(62), {mode: 0o755});
	const before = checkBinary(path, 'x64');
	t.is(checkBinary(path, 'x64'), before);
	await writeFile(path, Buffer.concat([elf(62), Buffer.alloc(1)]));
	t.not(checkBinary(path, 'x64'), before);
});

test('version › 1.36 and later are taken, older and unknown ones are not', t => {
	for (const version of ['1.36.0', '1.40.0', '1.41.0-dev', '2.0.0']) t.notThrows(() => checkVersion('/envoy', version));
	for (const version of ['1.35.9', '0.99.0', '', 'x']) {
		t.is(t.throws(() => checkVersion('/envoy', version), {instanceOf: AgentError})?.code, 'proxy.version_unsupported');
	}
});

test('exit › says how it ended and the last thing it said; SIGKILL points to the kernel', t => {
	const at = new Date(0);
	const exit = {code: undefined, signal: 'SIGKILL', at, logTail: ['a', 'b']};
	t.is(describeExit(exit), 'envoy was killed by SIGKILL: b');
	t.regex(hintForExit(exit, ['envoy'], '/log'), /out-of-memory/);
	t.is(describeExit({code: 1, signal: undefined, at, logTail: []}), 'envoy ended with code 1');
	t.regex(hintForExit({code: 1, signal: undefined}, ['envoy', '-c', 'x'], '/log'), /envoy -c x --mode validate/);
	t.regex(describeExit({code: undefined, signal: undefined, at, logTail: []}), /exit code is not known/);
});

test('log tail › is the last forty whole lines, and nothing for a file that is not there', async t => {
	const path = join(await folderOf(t), 'envoy.log');
	t.deepEqual(readTail(path), []);
	const lines = Array.from({length: 2000}, (_, i) => `${'x'.repeat(100)} ${i}`);
	await writeFile(path, `${lines.join('\n')}\n`);
	t.deepEqual(readTail(path), lines.slice(-40));
	t.is(errorLogPath('/a/envoy.log'), '/a/envoy.err');
	t.is(errorLogPath('/a/log'), '/a/log.err');
});

test('record › comes back as it was written; half a record, or none, is no record', async t => {
	const path = join(await folderOf(t), 'deep', 'record.json');
	t.is(loadRecord(path), undefined);
	const record = {binary: 'b', refusedFlags: ['--x']};
	saveRecord(path, record);
	t.deepEqual(loadRecord(path), record);
	for (const broken of ['{"binary": "b"', '{"binary": 1, "refusedFlags": []}', '[]', '']) {
		await writeFile(path, broken);
		t.is(loadRecord(path), undefined, broken);
	}
});

test('process › is known by its start time, and one that is gone has none', t => {
	t.is(identify(process.pid)!.startTime, startTimeOf(process.pid)!);
	t.is(startTimeOf(2 ** 30), undefined);
	t.is(identify(2 ** 30), undefined);
});

test('process › is found by the end of its command line', t => {
	const {argv} = identify(process.pid)!;
	t.true(findByArguments(argv.slice(1)).some(({pid}) => pid === process.pid));
	t.deepEqual(findByArguments(['-c', '/nobody/has/this.json']), []);
});

test('ports › lines of /proc/net/tcp that listen are read, and the first other one is the end', t => {
	const listening =
		'   0: 0100007F:3AAD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0';
	const connected =
		'   1: 0100007F:3AAD 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 12346 1 0 100 0 0 10 0';
	const sockets = [{address: '0100007F', port: 15021, inode: '12345'}];
	t.deepEqual(parseListening([listening]), {sockets, isEnd: false});
	t.deepEqual(parseListening([listening, connected]), {sockets, isEnd: true});
});

test('ports › addresses collide when they are equal or one is the wildcard', t => {
	const loopback = '0100007F';
	const mappedLoopback = `0000000000000000FFFF0000${loopback}`;
	const loopbackV6 = '00000000000000000000000001000000';
	t.true(overlaps(loopback, '127.0.0.1'));
	t.true(overlaps(mappedLoopback, '127.0.0.1'));
	t.true(overlaps('00000000', '127.0.0.1'));
	t.true(overlaps('0'.repeat(32), '127.0.0.1'));
	t.true(overlaps(loopback, '0.0.0.0'));
	t.true(overlaps(loopback, '::'));
	t.true(overlaps(loopbackV6, '::1'));
	t.false(overlaps(loopback, '127.0.0.2'));
	t.false(overlaps(loopback, '::1'));
	t.false(overlaps(loopbackV6, '127.0.0.1'));
	t.false(overlaps(loopbackV6, '0.0.0.0'));
});

test('ports › a port in use is named with its purpose and its owner; a free one passes', async t => {
	const server = createServer();
	await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve));
	const {port} = server.address() as {port: number};
	const error = t.throws(() => checkPortsFree('0.0.0.0', {metrics: port}), {instanceOf: AgentError});
	t.is(error?.code, 'proxy.port_in_use');
	t.true(error?.message.includes(`port ${port} for metrics is taken by`));
	t.is(error?.fields['pid'], process.pid);
	await new Promise(resolve => server.close(resolve));
	t.notThrows(() => checkPortsFree('0.0.0.0', {metrics: port}));
});
