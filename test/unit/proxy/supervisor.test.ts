import {chmod, mkdtemp, readFile, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {AgentError} from '../../../src/errors.ts';
import {Metrics, Readiness, systemClock} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {startProxy} from '../../../src/proxy/index.ts';
import {startTimeOf} from '../../../src/proxy/linux-process.ts';
import {proxyConfig, until} from '../../integration/proxy/world.ts';

interface Behaviour {
	readonly version?: string;
	readonly refusedFlag?: string;
	/** Ignores SIGTERM and what the admin is asked. */
	readonly isStubborn?: boolean;
}

/** Plays Envoy: serves the admin socket named in its bootstrap, and little else. */
const fakeEnvoy = (behaviour: Behaviour) => `#!${process.execPath}
const {createServer} = require('node:http');
const {readFileSync, rmSync} = require('node:fs');
const behaviour = ${JSON.stringify(behaviour)};
const args = process.argv.slice(2);
if (args.includes(behaviour.refusedFlag)) {
	console.error(behaviour.refusedFlag + " -- Couldn't find match for argument");
	process.exit(1);
}
const path = JSON.parse(readFileSync(args[args.indexOf('-c') + 1], 'utf8')).admin.address.pipe.path;
if (behaviour.isStubborn) process.on('SIGTERM', () => {});
rmSync(path, {force: true});
createServer((request, response) => {
	if (request.url === '/server_info') {
		const version = 'sha/' + (behaviour.version ?? '1.40.0') + '/Clean';
		const command_line_options = {config_path: args[args.indexOf('-c') + 1]};
		response.end(JSON.stringify({version, state: 'LIVE', command_line_options}));
	} else if (request.url.includes('update_success')) {
		response.end('cluster_manager.cds.update_success: 1\\nlistener_manager.lds.update_success: 1\\n');
	} else {
		response.end('OK\\n');
		if (request.url === '/quitquitquit' && !behaviour.isStubborn) process.exit(0);
	}
}).listen(path);
`;

async function start(t: ExecutionContext, behaviour: Behaviour) {
	const folder = await mkdtemp(join(tmpdir(), 'onramp-supervisor-'));
	// No suffix: Node takes it for CommonJS.
	const binaryPath = join(folder, 'envoy');
	await writeFile(binaryPath, fakeEnvoy(behaviour));
	await chmod(binaryPath, 0o755);
	const readiness = new Readiness(['proxy']);
	const config = proxyConfig(folder, {binaryPath});
	const proxy = await startProxy(
		{
			config,
			node: {},
			xdsSocketPath: join(folder, 'xds.sock'),
			statusAddress: '127.0.0.1',
			statusPort: 0,
			gate: readiness.gate('proxy'),
			log: silentLogger,
			metrics: new Metrics(),
			clock: systemClock,
			random: () => 0,
		},
		new AbortController().signal,
	);
	t.teardown(async () => {
		await proxy.stop();
		await rm(folder, {recursive: true, force: true});
	});
	return {proxy, readiness, config};
}

test('supervisor › an envoy that is too old is never served; the end says what to install', async t => {
	const {proxy, readiness} = await start(t, {version: '1.35.4'});
	const error = await t.throwsAsync(proxy.finished, {instanceOf: AgentError, message: /is version 1\.35\.4/});
	t.is(error?.code, 'proxy.version_unsupported');
	t.truthy(error?.hint);
	t.false(readiness.isReady);
	t.is(proxy.status().state, 'failed');
	const {pid} = proxy.status();
	await proxy.stop();
	t.is(startTimeOf(pid!), undefined);
});

test('supervisor › an optional flag that envoy refuses is left out, remembered, and no crash', async t => {
	const {proxy, readiness, config} = await start(t, {refusedFlag: '--skip-deprecated-logs'});
	await until('ready', () => readiness.isReady);
	t.is(proxy.status().restarts, 0);
	t.deepEqual(JSON.parse(await readFile(config.recordPath, 'utf8')).refusedFlags, ['--skip-deprecated-logs']);
});

test('supervisor › an envoy that ignores every request to end is killed', async t => {
	const {proxy, readiness} = await start(t, {isStubborn: true});
	await until('ready', () => readiness.isReady);
	const {pid} = proxy.status();
	await proxy.stop();
	t.is(startTimeOf(pid!), undefined);
	t.is(proxy.status().state, 'stopped');
});

test('supervisor › a stop right after the start leaves no process behind', async t => {
	const {proxy} = await start(t, {});
	const {pid} = proxy.status();
	t.not(pid, undefined);
	await proxy.stop();
	t.is(startTimeOf(pid!), undefined);
});

test('supervisor › two agents never share an admin socket: the second waits', async t => {
	const first = await start(t, {});
	await until('ready', () => first.readiness.isReady);
	const readiness = new Readiness(['proxy']);
	const second = await startProxy(
		{
			config: {
				...first.config,
				recordPath: `${first.config.recordPath}.2`,
				bootstrapPath: `${first.config.bootstrapPath}.2`,
			},
			node: {},
			xdsSocketPath: '/x',
			statusAddress: '127.0.0.1',
			statusPort: 0,
			gate: readiness.gate('proxy'),
			log: silentLogger,
			metrics: new Metrics(),
			clock: systemClock,
			random: () => 0,
		},
		new AbortController().signal,
	);
	t.teardown(() => second.stop());
	t.is(second.status().state, 'waiting');
	t.regex(readiness.states()[0]!.reason, /another envoy answers/);
	t.is(await first.proxy.admin.ready(), 'OK');
});

test('supervisor › a log that cannot be written is kept beside the bootstrap, said so, and no reason to end envoy later', async t => {
	const folder = await mkdtemp(join(tmpdir(), 'onramp-supervisor-'));
	t.teardown(() => rm(folder, {recursive: true, force: true}));
	const binaryPath = join(folder, 'envoy');
	await writeFile(binaryPath, fakeEnvoy({}), {mode: 0o755});
	const obstacle = join(folder, 'log');
	await writeFile(obstacle, '');
	const start = async (onStop: 'leave' | 'stop') => {
		const readiness = new Readiness(['proxy']);
		const proxy = await startProxy(
			{
				// A folder below a file can be made by nobody, not even by root.
				config: proxyConfig(folder, {binaryPath, logPath: join(obstacle, 'envoy.log'), onStop}),
				node: {},
				xdsSocketPath: '/x',
				statusAddress: '127.0.0.1',
				statusPort: 0,
				gate: readiness.gate('proxy'),
				log: silentLogger,
				metrics: new Metrics(),
				clock: systemClock,
				random: () => 0,
			},
			new AbortController().signal,
		);
		t.teardown(() => proxy.stop());
		await until('ready', () => readiness.isReady);
		return proxy;
	};
	const spare = join(folder, 'envoy.log');
	const first = await start('leave');
	const {pid, warnings} = first.status();
	t.regex(warnings![0]!, new RegExp(`^envoy's log is at ${spare} until envoy starts anew: E(NOTDIR|EXIST)`));
	t.true((await readFile(`/proc/${pid}/cmdline`, 'utf8')).includes(`--log-path\0${spare}`));
	await first.stop();

	// The next agent could have the log where it wants it, but not without ending an Envoy that serves.
	await rm(obstacle);
	const second = await start('stop');
	t.like(second.status(), {pid, adopted: true});
	t.regex(second.status().warnings![0]!, new RegExp(`^envoy's log is at ${spare} until envoy starts anew: `));
	process.kill(pid!, 'SIGKILL');
	const after = await until('another', () => second.status().pid !== pid && second.status());
	t.deepEqual(after.warnings, [], 'the next one has it where it is wanted');
});

test('supervisor › a folder that cannot be written is waited for, and named', async t => {
	const folder = await mkdtemp(join(tmpdir(), 'onramp-supervisor-'));
	t.teardown(() => rm(folder, {recursive: true, force: true}));
	const binaryPath = join(folder, 'envoy');
	await writeFile(binaryPath, fakeEnvoy({}), {mode: 0o755});
	await writeFile(join(folder, 'file'), '');
	const readiness = new Readiness(['proxy']);
	const proxy = await startProxy(
		{
			// A folder below a file can be made by nobody, not even by root.
			config: proxyConfig(folder, {binaryPath, bootstrapPath: join(folder, 'file', 'envoy.json')}),
			node: {},
			xdsSocketPath: '/x',
			statusAddress: '127.0.0.1',
			statusPort: 0,
			gate: readiness.gate('proxy'),
			log: silentLogger,
			metrics: new Metrics(),
			clock: systemClock,
			random: () => 0,
		},
		new AbortController().signal,
	);
	t.teardown(() => proxy.stop());
	t.is(proxy.status().state, 'waiting');
	t.regex(readiness.states()[0]!.reason, /write its files: EEXIST/);
});
