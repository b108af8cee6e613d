import {mkdtemp, rm, stat, writeFile} from 'node:fs/promises';
import {type RequestOptions, request} from 'node:http';
import {type AddressInfo, connect, createServer, type Server} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import type {StatusConfig} from '../../../src/config/types.ts';
import {AgentError} from '../../../src/errors.ts';
import {Metrics, Readiness, systemClock} from '../../../src/lifecycle/index.ts';
import {Secret, silentLogger} from '../../../src/log.ts';
import {fetchStatus, sendCommand} from '../../../src/status/client.ts';
import {type StatusDeps, type StatusServer, startStatusServer} from '../../../src/status/server.ts';

interface Answer {
	readonly status: number;
	readonly headers: Record<string, unknown>;
	readonly body: string;
}

function ask(options: RequestOptions): Promise<Answer> {
	return new Promise((resolve, reject) => {
		const sent = request({agent: false, ...options}, async response => {
			const body = Buffer.concat(await response.toArray()).toString();
			resolve({status: response.statusCode ?? 0, headers: response.headers, body});
		});
		sent.on('error', reject);
		sent.end();
	});
}

/** A port nobody has: the kernel does not give the same one again soon. */
async function freePort(): Promise<number> {
	const server = await listening();
	const {port} = server.address() as AddressInfo;
	await new Promise(resolve => server.close(resolve));
	return port;
}

function listening(path?: string): Promise<Server> {
	return new Promise(resolve => {
		const server = createServer();
		server.listen(path ?? {host: '127.0.0.1', port: 0}, () => resolve(server));
	});
}

async function makeDir(t: ExecutionContext): Promise<string> {
	const dir = await mkdtemp(join(tmpdir(), 'onramp-status-'));
	t.teardown(() => rm(dir, {recursive: true, force: true}));
	return dir;
}

interface Started {
	readonly server: StatusServer;
	readonly readiness: Readiness;
	readonly config: StatusConfig;
	/** On the TCP port. */
	readonly get: (path: string, options?: RequestOptions) => Promise<Answer>;
	/** On the control socket. */
	readonly control: (path: string, options?: RequestOptions) => Promise<Answer>;
}

async function start(
	t: ExecutionContext,
	more: Omit<Partial<StatusDeps>, 'config'> & {config?: Partial<StatusConfig>} = {},
): Promise<Started> {
	const readiness = new Readiness(['identity', 'proxy']);
	const config: StatusConfig = {
		address: '127.0.0.1',
		port: await freePort(),
		controlSocketPath: join(await makeDir(t), 'run', 'control.sock'),
		appMetrics: [],
		isEnvoyMerged: true,
		...more.config,
	};
	const deps = {
		readiness,
		metrics: new Metrics(),
		clock: systemClock,
		log: silentLogger,
		version: '1.2.3',
		...more,
		config,
	};
	const server = await startStatusServer(deps);
	t.teardown(() => server.stop());
	return {
		server,
		readiness,
		config,
		get: (path, options) => ask({host: '127.0.0.1', port: config.port, path, ...options}),
		control: (path, options) => ask({socketPath: config.controlSocketPath, path, ...options}),
	};
}

function openAll(readiness: Readiness): void {
	for (const {name} of readiness.states()) readiness.gate(name).open();
}

test('status › is not ready until every gate is open, and names the closed ones', async t => {
	const {get, readiness} = await start(t);
	readiness.gate('identity').open();
	readiness.gate('proxy').close('envoy is starting');
	const before = await get('/healthz/ready');
	t.is(before.status, 503);
	t.is(before.body, 'proxy: envoy is starting\n');
	readiness.gate('proxy').open();
	t.like(await get('/healthz/ready'), {status: 200, body: 'ready\n'});
});

test('status › is live while nothing is ready', async t => {
	const {get} = await start(t);
	t.like(await get('/livez'), {status: 200, body: 'ok\n'});
});

test('status › is not ready once the agent is stopping', async t => {
	const {get, readiness} = await start(t, {isStopping: () => true});
	openAll(readiness);
	t.like(await get('/healthz/ready'), {status: 503, body: 'stopping\n'});
	t.is((await get('/readyz')).status, 503);
	t.is((await get('/livez')).status, 200);
});

test('status › gives gates as JSON with reason, hint and since', async t => {
	const {get, readiness} = await start(t);
	readiness.gate('identity').close('token expired', 'write a new one');
	const {status, body} = await get('/readyz');
	t.is(status, 503);
	const {gates} = JSON.parse(body) as {gates: Record<string, unknown>[]};
	t.like(gates[0], {name: 'identity', open: false, reason: 'token expired', hint: 'write a new one'});
	t.false(Number.isNaN(Date.parse(String(gates[0]?.['since']))));
});

test('status › answers for one gate: 503 closed, 200 open, 404 unknown', async t => {
	const {get, readiness} = await start(t);
	t.is((await get('/readyz/identity')).status, 503);
	readiness.gate('identity').open();
	t.is((await get('/readyz/identity')).status, 200);
	t.is((await get('/readyz/nothing')).status, 404);
	t.is((await get('/readyz/__proto__')).status, 404);
});

test('status › keeps the report and the commands off the network', async t => {
	const {server, get, control} = await start(t);
	server.addCommand('rotate', () => ({done: true}));
	for (const path of ['/status', '/gates', '/rotate', '/quitquitquit'])
		t.is((await get(path, {method: 'POST'})).status, 404, path);
	t.is((await get('/status')).status, 404);
	t.is((await control('/status')).status, 200);
	t.is((await control('/gates')).status, 200);
	t.is((await control('/healthz/ready')).status, 503);
});

test('status › takes only GET and HEAD for what is read, and only POST for commands', async t => {
	const {server, get, control} = await start(t);
	server.addCommand('rotate', () => ({done: true}));
	t.like(await get('/livez', {method: 'POST'}), {status: 405});
	t.like(await get('/livez', {method: 'HEAD'}), {status: 200, body: ''});
	t.like(await control('/rotate'), {status: 405});
	t.like(await control('/rotate', {method: 'POST'}), {status: 200});
});

test('status › reports each part, and a part that fails without hiding the others', async t => {
	const {server, config} = await start(t);
	server.add('identity', () => ({spiffeId: 'spiffe://a', token: new Secret('hush')}));
	server.add('relay', () => {
		throw new Error('broken');
	});
	server.add('proxy', () => undefined);
	const report = await fetchStatus(config.controlSocketPath);
	t.is(report.version, '1.2.3');
	t.deepEqual(report.parts, {
		identity: {spiffeId: 'spiffe://a', token: '[redacted]'},
		relay: {error: 'part could not report: broken'},
		proxy: null,
	});
});

test('status › runs a command with its input and hands its error over with the hint', async t => {
	const {server, config} = await start(t);
	server.addCommand('echo', input => ({got: input}));
	server.addCommand('fail', async () => {
		throw new AgentError('control_plane.unreachable', 'rotate: away', {hint: 'look at the network'});
	});
	t.deepEqual(await sendCommand(config.controlSocketPath, 'echo', {a: 1}), {got: {a: 1}});
	await t.throwsAsync(sendCommand(config.controlSocketPath, 'fail'), {
		message: 'rotate: away',
		code: 'status.command_failed',
	});
	await t.throwsAsync(sendCommand(config.controlSocketPath, 'nothing'), {message: /does not know \/nothing/});
	await t.throwsAsync(sendCommand(config.controlSocketPath, 'echo', 'x'.repeat(70_000)));
});

test('status › opens the control socket to user and group only', async t => {
	const {config} = await start(t);
	t.is((await stat(config.controlSocketPath)).mode & 0o777, 0o660);
	t.is((await stat(join(config.controlSocketPath, '..'))).mode & 0o777, 0o750);
});

test('status › frees port and socket when it stops, also twice', async t => {
	const {server, config} = await start(t);
	await server.stop();
	await server.stop();
	await t.throwsAsync(stat(config.controlSocketPath), {code: 'ENOENT'});
	const again = await start(t, {config});
	t.is((await again.get('/livez')).status, 200);
});

test('status › names the port that is in use and who has it, and gives the control socket back', async t => {
	const other = await listening();
	t.teardown(() => other.close());
	const {port} = other.address() as AddressInfo;
	const controlSocketPath = join(await makeDir(t), 'control.sock');
	const error = await t.throwsAsync<AgentError>(start(t, {config: {port, controlSocketPath}}), {
		code: 'status.port_in_use',
	});
	t.regex(error.message, new RegExp(`127\\.0\\.0\\.1:${port}: port is in use by .* \\(pid ${process.pid}\\)`));
	await t.throwsAsync(stat(controlSocketPath), {code: 'ENOENT'});
});

test('status › says which address it cannot have', async t => {
	const error = await t.throwsAsync<AgentError>(start(t, {config: {address: '192.0.2.1'}}), {
		code: 'status.listen_failed',
	});
	t.regex(error.message, /192\.0\.2\.1:\d+: EADDRNOTAVAIL/);
});

test('status › serves no port when the port is 0', async t => {
	const {server, control} = await start(t, {config: {port: 0}});
	t.is(server.port, undefined);
	t.is((await control('/livez')).status, 200);
});

test('status › takes the place of a socket that a killed agent left', async t => {
	const dir = await makeDir(t);
	const controlSocketPath = join(dir, 'control.sock');
	const left = join(dir, 'left.sock');
	// Closing removes a socket at the path it was bound to, so it is moved away first and stays, with nobody behind it.
	const dead = await listening(left);
	await import('node:fs/promises').then(fs => fs.rename(left, controlSocketPath));
	await new Promise(resolve => dead.close(resolve));
	const {control} = await start(t, {config: {controlSocketPath}});
	t.is((await control('/livez')).status, 200);
});

test('status › does not take the socket of an agent that answers', async t => {
	const first = await start(t);
	const error = await t.throwsAsync<AgentError>(
		start(t, {config: {controlSocketPath: first.config.controlSocketPath}}),
		{
			code: 'status.port_in_use',
		},
	);
	t.regex(error.message, /another agent answers/);
	t.is((await first.control('/livez')).status, 200);
});

test('status › does not remove a file that is no socket', async t => {
	const controlSocketPath = join(await makeDir(t), 'control.sock');
	await writeFile(controlSocketPath, 'precious');
	await t.throwsAsync(start(t, {config: {controlSocketPath}}), {code: 'status.listen_failed', message: /no socket/});
	t.is((await stat(controlSocketPath)).size, 8);
});

test('status › refuses long URLs and headers, and does not look at Host', async t => {
	const {get} = await start(t);
	t.is((await get(`/${'a'.repeat(20_000)}`)).status, 431);
	t.is((await get('/livez', {headers: {'x-long': 'a'.repeat(20_000)}})).status, 431);
	const answer = await get('/livez', {headers: {host: 'evil.example'}});
	t.is(answer.status, 200);
	t.false(JSON.stringify(answer).includes('evil'));
});

test('status › drops a client that does not finish its headers', async t => {
	const {config} = await start(t);
	const socket = connect(config.port, '127.0.0.1');
	socket.write('GET /livez HTTP/1.1\r\nHost: a\r\nX-Slow: ');
	let text = '';
	for await (const chunk of socket) text += String(chunk);
	t.regex(text, /^HTTP\/1\.1 408 /);
});

test('status › survives what is not HTTP', async t => {
	const {config, get} = await start(t);
	const socket = connect(config.port, '127.0.0.1');
	socket.on('error', () => {});
	socket.write(Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00, 0x01]));
	await new Promise(resolve => socket.on('close', resolve).resume());
	t.is((await get('/livez')).status, 200);
});

test('status › turns away a fifth scrape at once instead of holding five pages in memory', async t => {
	const {server, get} = await start(t);
	const release: (() => void)[] = [];
	server.setEnvoyScrape(async () => {
		await new Promise<void>(resolve => release.push(resolve));
		return {body: Buffer.from('envoy 1\n'), contentType: 'text/plain'};
	});
	const held = Array.from({length: 4}, () => get('/metrics'));
	while (release.length < 4) await new Promise(resolve => setImmediate(resolve));
	t.is((await get('/metrics')).status, 503);
	t.is((await get('/livez')).status, 200);
	for (const resolve of release) resolve();
	for (const {status, body} of await Promise.all(held)) {
		t.is(status, 200);
		t.regex(body, /onramp_process_resident_memory_bytes \d+\n/);
		t.regex(body, /onramp_build_info\{version="1\.2\.3",node="v[\d.]+"\} 1\n/);
		t.regex(body, /envoy 1\n$/);
	}
});

test('status › leaves Envoy out when its metrics are not to be merged', async t => {
	const {server, get} = await start(t, {config: {isEnvoyMerged: false}});
	server.setEnvoyScrape(async () => ({body: Buffer.from('envoy 1\n'), contentType: 'text/plain'}));
	t.notRegex((await get('/stats/prometheus')).body, /envoy 1/);
});
