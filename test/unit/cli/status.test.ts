import {once} from 'node:events';
import {readFileSync, writeFileSync} from 'node:fs';
import {createServer} from 'node:net';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {Metrics, Readiness, systemClock} from '../../../src/lifecycle/index.ts';
import {createLogger} from '../../../src/log.ts';
import {startStatusServer} from '../../../src/status/index.ts';
import {directoryWith, onramp, start} from './command.ts';

/** The part of an agent that answers, in a directory of its own. */
async function startAgent(t: ExecutionContext, files: Readonly<Record<string, string>> = {}) {
	const directory = directoryWith(t, files);
	const readiness = new Readiness(['identity', 'proxy']);
	let isStopping = false;
	const server = await startStatusServer({
		config: {
			address: '127.0.0.1',
			port: 0,
			controlSocketPath: join(directory, 'control.sock'),
			appMetrics: [],
			isEnvoyMerged: false,
		},
		readiness,
		metrics: new Metrics(),
		clock: systemClock,
		log: createLogger({level: 'error', format: 'text'}),
		version: '0.1.0',
		isStopping: () => isStopping,
	});
	t.teardown(() => server.stop());
	const open = (): void => {
		readiness.gate('identity').open('certificate valid');
		readiness.gate('proxy').open('envoy is live');
	};
	return {
		directory,
		readiness,
		server,
		open,
		stop: () => {
			isStopping = true;
		},
	};
}

test('status › of an agent that is ready ends with 0', async t => {
	const {directory, open} = await startAgent(t);
	open();
	const {code, stdout, stderr} = await onramp(['status', '--run-dir', directory]);
	t.deepEqual([code, stderr], [0, '']);
	t.regex(
		stdout,
		/^onramp 0\.1\.0 \(pid \d+\), up .*: READY\n\n\[ok\] identity {2}certificate valid \(for .*\)\n\[ok\] proxy/,
	);
});

test('status › of an agent that is not ready says why and what to do, and ends with 1', async t => {
	const {directory, readiness} = await startAgent(t);
	readiness.gate('identity').close('locked out', 'onramp join --token-file FILE');
	const {code, stdout} = await onramp(['status', '--run-dir', directory]);
	t.is(code, 1);
	t.regex(stdout, /: NOT READY\n/);
	t.regex(stdout, /\[--\] identity {2}locked out .*\n {15}do: onramp join --token-file FILE\n/);
});

test('status › of an agent that is stopping is not ready, though its gates are open', async t => {
	const {directory, open, stop} = await startAgent(t);
	open();
	stop();
	const {code, stdout} = await onramp(['status', '--run-dir', directory]);
	t.is(code, 1);
	t.regex(stdout, /: STOPPING\n/);
});

test('status › without an agent ends with 2 and names the socket', async t => {
	const directory = directoryWith(t);
	const {code, stdout, stderr} = await onramp(['status', '--json', '--run-dir', directory]);
	t.deepEqual([code, stdout], [2, '']);
	t.true(stderr.startsWith(`onramp: ask agent at ${directory}/control.sock: agent is not running`), stderr);
});

test('status › of something that takes the question and never answers ends with 2', async t => {
	const directory = directoryWith(t);
	const silent = createServer(() => {}).listen(join(directory, 'control.sock'));
	t.teardown(() => silent.close());
	await once(silent, 'listening');
	const {code, stderr} = await onramp(['status', '--run-dir', directory]);
	t.is(code, 2);
	t.regex(stderr, /no answer within 5 s\n {2}→ the agent hangs/);
});

test('status › finds the agent by flag, variable, file, or what join has kept, with no bundle anywhere', async t => {
	const {directory, open} = await startAgent(t);
	open();
	const elsewhere = (files: Record<string, string>) => join(directoryWith(t, files), 'onramp.yaml');
	const ways: readonly [string[], Record<string, string>][] = [
		[['--control-socket', join(directory, 'control.sock')], {}],
		[[], {ONRAMP_RUN_DIR: directory}],
		[[], {ONRAMP_CONTROL_SOCKET: join(directory, 'control.sock')}],
		[['--config', elsewhere({'onramp.yaml': `run-dir: ${directory}\n`})], {}],
		[[], {ONRAMP_CONFIG: elsewhere({'onramp.yaml': `status:\n  control-socket: ${directory}/control.sock\n`})}],
		[['--config', elsewhere({'join.yaml': `run-dir: ${directory}\n`})], {}],
	];
	for (const [flags, env] of ways) {
		const {code, stderr} = await onramp(['status', ...flags], env);
		t.deepEqual([code, stderr], [0, ''], JSON.stringify([flags, env]));
	}
});

const brokenFiles: readonly [string, (directory: string) => string, RegExp][] = [
	[
		'a setting that does not exist',
		run => `run-dir: ${run}\nno-such: 1\n`,
		/onramp\.yaml:2: unknown setting "no-such"/,
	],
	['a value that cannot be', run => `proxy:\n  concurrency: lots\nrun-dir: ${run}\n`, /^$/],
	['a second mistake below the place', run => `run-dir: ${run}\nlog: 7\n`, /log is a section/],
];

for (const [title, yaml, warning] of brokenFiles) {
	test(`status › finds the agent through a file with ${title}`, async t => {
		const {directory, open} = await startAgent(t);
		open();
		const config = join(directory, 'onramp.yaml');
		writeFileSync(config, yaml(directory));
		const {code, stdout, stderr} = await onramp(['status', '--config', config]);
		t.is(code, 0, stderr);
		t.regex(stdout, /: READY/);
		t.regex(stderr.trim(), warning);
	});
}

test('status › says which file it could not read, and looks at the ordinary place', async t => {
	const config = join(directoryWith(t, {'onramp.yaml': 'run-dir: [\n'}), 'onramp.yaml');
	const {stderr} = await onramp(['status', '--config', config], {ONRAMP_RUN_DIR: directoryWith(t)});
	t.regex(stderr, /^warning: \S+onramp\.yaml:\d+: is not YAML/);
});

test('status --json › is the report, whole and parseable', async t => {
	const {directory, open, server} = await startAgent(t);
	open();
	server.add('identity', () => ({state: 'serving'}));
	const {code, stdout} = await onramp(['status', '--json', '--run-dir', directory]);
	t.is(code, 0);
	const report = JSON.parse(stdout);
	t.like(report, {version: '0.1.0', ready: true, stopping: false, parts: {identity: {state: 'serving'}}});
	t.deepEqual(
		report.gates.map(({name, open: isOpen}: {name: string; open: boolean}) => [name, isOpen]),
		[
			['identity', true],
			['proxy', true],
		],
	);
});

test('status --wait › returns as soon as the agent is ready', async t => {
	const {directory, open, server} = await startAgent(t);
	// The first question has been asked when this is called.
	server.add('asked', () => {
		setImmediate(open);
		return null;
	});
	const {code, stdout} = await onramp(['status', '--wait', '60s', '--run-dir', directory]);
	t.is(code, 0);
	t.regex(stdout, /: READY/);
});

test('status --wait › gives up after its time with the last report and 1', async t => {
	const {directory} = await startAgent(t);
	const {code, stdout} = await onramp(['status', '--wait', '300ms', '--run-dir', directory]);
	t.is(code, 1);
	t.regex(stdout, /: NOT READY/);
});

test('status --watch › prints again and again, and ends in order with the last code', async t => {
	const {directory, open} = await startAgent(t);
	const child = start(['status', '--watch', '--run-dir', directory]);
	let seen = '';
	for await (const chunk of child.stdout) {
		seen += chunk;
		if (seen.includes('NOT READY')) open();
		if (seen.includes(': READY')) break;
	}
	child.kill('SIGINT');
	const [code] = await once(child, 'exit');
	t.is(code, 0);
	t.notRegex(seen, /\x1b/, 'not a terminal');
});

test('status --watch › ends quietly when nobody reads on', async t => {
	const {directory} = await startAgent(t);
	const child = start(['status', '--watch', '--run-dir', directory]);
	let complaints = '';
	child.stderr.on('data', chunk => {
		complaints += chunk;
	});
	await once(child.stdout, 'data');
	child.stdout.destroy();
	const [code] = await once(child, 'close');
	t.deepEqual([code, complaints], [1, '']);
});

test('status › names the files that have changed since the agent read them', async t => {
	const {directory, open, server} = await startAgent(t, {'onramp.yaml': '', 'gone.yaml': ''});
	open();
	const emptySha256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';
	const files = [
		{path: join(directory, 'onramp.yaml'), sha256: emptySha256},
		{path: join(directory, 'join.yaml'), sha256: null},
	];
	server.add('configuration', () => ({files}));
	const before = await onramp(['status', '--run-dir', directory]);
	t.notRegex(before.stdout, /changed since|sha256/);
	writeFileSync(join(directory, 'join.yaml'), 'x');
	const after = await onramp(['status', '--run-dir', directory]);
	t.regex(after.stdout, /\nchanged since the agent was started, and not in use: \S+join\.yaml\n$/);
	t.is(readFileSync(join(directory, 'onramp.yaml'), 'utf8'), '');
});
