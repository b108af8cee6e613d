import {mkdtempSync, readFileSync, rmSync} from 'node:fs';
import {createServer as createHttpServer, type RequestListener} from 'node:http';
import {createServer as createHttpsServer} from 'node:https';
import {type AddressInfo, createServer as createTcpServer, type Server, type Socket} from 'node:net';
import {networkInterfaces, tmpdir} from 'node:os';
import {join} from 'node:path';
import {Server as GrpcServer, status as grpcStatus, ServerCredentials} from '@grpc/grpc-js';
import test, {type ExecutionContext} from 'ava';
import type {ProbeCheck} from '../../../src/config/index.ts';
import {runCheck} from '../../../src/health/check.ts';
import {systemClock} from '../../../src/lifecycle/index.ts';
import {FieldWriter} from '../../../src/proto/wire.ts';
import {CertificateAuthority} from '../../../src/sandbox/ca.ts';
import {until} from '../../support/mesh.ts';

const host = '127.0.0.1';
/** Long enough for a busy machine; tests of being late bring their own. */
const patientMs = 30_000;
const run = async (check: ProbeCheck, timeoutMs = patientMs, signal = new AbortController().signal) =>
	(await runCheck(check, host, timeoutMs, systemClock, signal)).outcome;

async function listen(t: ExecutionContext, server: Server, at = host): Promise<number> {
	const sockets = new Set<Socket>();
	server.on('connection', socket => sockets.add(socket));
	server.listen(0, at);
	await new Promise(resolve => server.once('listening', resolve));
	t.teardown(() => {
		for (const socket of sockets) socket.destroy();
		server.close();
	});
	return (server.address() as AddressInfo).port;
}

const http = (port: number, path = '/', headers: {name: string; value: string}[] = []): ProbeCheck => ({
	kind: 'http',
	scheme: 'http',
	host: undefined,
	port,
	path,
	headers,
});
const web = (t: ExecutionContext, answer: RequestListener) => listen(t, createHttpServer(answer));

/** One at which nobody listens: taken, and given back. */
async function closedPort(): Promise<number> {
	const server = createTcpServer().listen(0, host);
	await new Promise(resolve => server.once('listening', resolve));
	const {port} = server.address() as AddressInfo;
	await new Promise(resolve => server.close(resolve));
	return port;
}

for (const [status, isHealthy] of [
	[200, true],
	[204, true],
	[304, true],
	[399, true],
	[400, false],
	[404, false],
	[500, false],
	[503, false],
] as const)
	test(`http › status ${status} is ${isHealthy ? 'healthy' : 'not'}`, async t => {
		const port = await web(t, (_, response) => response.writeHead(status).end());
		t.is(await run(http(port)), isHealthy ? undefined : `HTTP status ${status}`);
	});

test('http › comes from the address that capture lets pass, with the headers of the probe, and closes', async t => {
	const seen: unknown[] = [];
	const port = await web(t, (request, response) => {
		const {host: name, 'user-agent': agent, connection} = request.headers;
		seen.push([
			request.socket.remoteAddress,
			request.method,
			request.url,
			name,
			agent,
			connection,
			request.headers['x-a'],
		]);
		response.end();
	});
	t.is(await run(http(port, '/healthz?deep=1', [{name: 'X-A', value: 'b'}])), undefined);
	t.is(
		await run(
			http(port, '/', [
				{name: 'Host', value: 'shop.example'},
				{name: 'User-Agent', value: 'me'},
			]),
		),
		undefined,
	);
	t.deepEqual(seen, [
		['127.0.0.6', 'GET', '/healthz?deep=1', `127.0.0.1:${port}`, 'onramp-probe/0.1.0', 'close', 'b'],
		['127.0.0.6', 'GET', '/', 'shop.example', 'me', 'close', undefined],
	]);
});

test('http › follows a redirect on its own host, takes one to another for an answer, and does not go in circles', async t => {
	const paths: string[] = [];
	const port = await web(t, ({url = ''}, response) => {
		paths.push(url);
		if (url === '/a') response.writeHead(302, {location: '/b'}).end();
		else if (url === '/away') response.writeHead(302, {location: 'http://shop.example/'}).end();
		else if (url === '/round') response.writeHead(302, {location: '/round'}).end();
		else response.writeHead(500).end();
	});
	t.is(await run(http(port, '/a')), 'HTTP status 500');
	t.is(await run(http(port, '/away')), undefined);
	t.deepEqual(paths, ['/a', '/b', '/away']);
	t.is(await run(http(port, '/round')), 'redirected more than 10 times');
});

test('http › an answer without an end is none; one that is long is one', async t => {
	const port = await web(t, ({url}, response) => {
		if (url === '/endless') response.write(Buffer.alloc(1_000_000));
		else response.writeHead(200, {'content-length': '5'}).write('ab');
	});
	t.is(await run(http(port, '/endless')), undefined);
	t.is(await run(http(port, '/unfinished'), 200), 'no answer within 0.2 s');
});

test('http › a server that takes the connection and says nothing is unhealthy when the time is over', async t => {
	const port = await listen(
		t,
		createTcpServer(() => {}),
	);
	t.is(await run(http(port), 100), 'no answer within 0.1 s');
});

test('http › a server that speaks something else is unhealthy', async t => {
	const port = await listen(
		t,
		createTcpServer(socket => socket.end('SSH-2.0-x\r\n')),
	);
	t.regex((await run(http(port)))!, /^Parse Error|parse/i);
});

test('https › any certificate will do', async t => {
	const ca = await CertificateAuthority.create();
	const {keyPem, certPem} = await ca.issueServerCertificate(['other.example']);
	const port = await listen(
		t,
		createHttpsServer({key: keyPem, cert: certPem}, (_, response) => response.end()),
	);
	t.is(await run({...http(port), scheme: 'https'} as ProbeCheck), undefined);
	t.not(await run(http(port)), undefined, 'and without TLS there is no answer');
});

test('tcp › healthy while somebody listens', async t => {
	const from: unknown[] = [];
	const server = createTcpServer(socket => from.push(socket.remoteAddress));
	const port = await listen(t, server);
	t.is(await run({kind: 'tcp', host: undefined, port}), undefined);
	await until('the connection', () => from.length === 1);
	t.deepEqual(from, ['127.0.0.6']);
	t.is(await run({kind: 'tcp', host: undefined, port: await closedPort()}), 'connection refused: nobody listens there');
});

test('tcp › over IPv6 as well, also where nobody has put ::6 on lo', async t => {
	if (!Object.values(networkInterfaces()).some(found => found?.some(({address}) => address === '::1'))) {
		t.log('skipped: no IPv6');
		t.pass();
		return;
	}
	const port = await listen(t, createTcpServer(), '::1');
	t.is(await run({kind: 'tcp', host: '::1', port}), undefined);
});

test('tcp › only this machine is asked', async t => {
	t.is(await run({kind: 'tcp', host: '192.0.2.77', port: 80}), '192.0.2.77 is not an address of this machine');
});

const bytes = (value: Buffer) => value;
/** grpc.health.v1 with an answer for each service. */
async function health(t: ExecutionContext, statuses: Readonly<Record<string, number>>): Promise<number> {
	const server = new GrpcServer();
	const check = {
		path: '/grpc.health.v1.Health/Check',
		requestStream: false,
		responseStream: false,
		requestSerialize: bytes,
		requestDeserialize: bytes,
		responseSerialize: bytes,
		responseDeserialize: bytes,
	};
	server.addService(
		{check},
		{
			check: (
				call: {request: Buffer},
				done: (error: null | {code: number; details: string}, answer?: Buffer) => void,
			) => {
				const status = statuses[call.request.subarray(2).toString()];
				if (status === undefined) done({code: grpcStatus.NOT_FOUND, details: 'unknown service'});
				else done(null, new FieldWriter().uint(1, status).finish());
			},
		},
	);
	t.teardown(() => server.forceShutdown());
	return new Promise((resolve, reject) =>
		server.bindAsync(`${host}:0`, ServerCredentials.createInsecure(), (error, port) =>
			error ? reject(error) : resolve(port),
		),
	);
}
const grpc = (port: number, service = ''): ProbeCheck => ({kind: 'grpc', port, service});

test('grpc › only SERVING is healthy', async t => {
	const port = await health(t, {'': 1, db: 2, none: 0, odd: 3});
	t.is(await run(grpc(port)), undefined);
	t.is(await run(grpc(port, 'db')), 'it says NOT_SERVING');
	t.is(await run(grpc(port, 'none')), 'it says UNKNOWN');
	t.is(await run(grpc(port, 'odd')), 'it says SERVICE_UNKNOWN');
	t.is(await run(grpc(port, 'lost')), 'gRPC status 5: unknown service');
	t.is(await run(grpc(await closedPort())), 'connection refused: nobody listens there');
});

test('grpc › a server without the health service, or without gRPC, is unhealthy', async t => {
	const server = new GrpcServer();
	t.teardown(() => server.forceShutdown());
	const bare = await new Promise<number>((resolve, reject) =>
		server.bindAsync(`${host}:0`, ServerCredentials.createInsecure(), (error, port) =>
			error ? reject(error) : resolve(port),
		),
	);
	t.regex((await run(grpc(bare)))!, /^gRPC status 12/);
	t.not(await run(grpc(await web(t, (_, response) => response.end()))), undefined);
	const mute = await listen(
		t,
		createTcpServer(() => {}),
	);
	t.is(await run(grpc(mute), 100), 'no answer within 0.1 s');
});

const exec = (...command: string[]): ProbeCheck => ({kind: 'exec', command});

test('exec › exit code 0 is healthy; otherwise its first words are told, on one line', async t => {
	t.is(await run(exec('/bin/true')), undefined);
	t.is(await run(exec('/bin/false')), 'exit code 1');
	t.is(await run(exec('/bin/sh', '-c', 'echo no; echo "  room\\033[2J" >&2; exit 3')), 'exit code 3: no room [2J');
	t.is(await run(exec('/bin/sh', '-c', 'kill -9 $$')), 'ended by SIGKILL');
	t.is(await run(exec('/no/such/program')), 'there is no such program');
	t.is(await run(exec('/etc/passwd')), 'the agent may not run this program');
});

test('exec › no shell reads the words', async t => {
	t.is(await run(exec('/bin/sh', '-c', '[ "$1" = "; exit 1" ] || exit 9', 'sh', '; exit 1')), undefined);
	t.is(await run(exec('/bin/true;false')), 'there is no such program');
});

test('exec › output without end neither fills memory nor holds it up', async t => {
	const outcome = await run(exec('/bin/sh', '-c', 'head -c 50000000 /dev/zero | tr "\\0" x; exit 4'));
	t.regex(outcome!, /^exit code 4: x{200,}…$/);
	t.true(outcome!.length <= 300);
});

test('exec › is not given what the agent has in its environment', async t => {
	process.env['ONRAMP_TEST_SECRET'] = 'hush';
	t.teardown(() => delete process.env['ONRAMP_TEST_SECRET']);
	t.is(await run(exec('/bin/sh', '-c', '[ -z "$ONRAMP_TEST_SECRET" ] && [ -n "$PATH" ]')), undefined);
});

const isAlive = (pid: number): boolean => {
	try {
		return !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));
	} catch {
		return false;
	}
};

/** Where a shell of the test writes the pid of its child. */
function pidFile(t: ExecutionContext): {path: string; read: () => number} {
	const directory = mkdtempSync(join(tmpdir(), 'onramp-exec-'));
	t.teardown(() => rmSync(directory, {recursive: true}));
	const path = join(directory, 'pid');
	return {path, read: () => Number(readFileSync(path, 'latin1'))};
}

test('exec › is killed with all its children when the time is over, though they ignore signals', async t => {
	const {path, read} = pidFile(t);
	const stopping = new AbortController();
	const script = `trap "" TERM INT HUP; (trap "" TERM INT HUP; sleep 600) & echo $! > ${path}; wait; sleep 600`;
	const running = run(exec('/bin/sh', '-c', script), 1000, stopping.signal);
	const pid = await until('the child', read);
	t.is(await running, 'no answer within 1 s');
	await until('its end', () => !isAlive(pid));
});

test('exec › what it leaves behind ends with it', async t => {
	const {path, read} = pidFile(t);
	t.is(await run(exec('/bin/sh', '-c', `sleep 600 & echo $! > ${path}`)), undefined);
	await until('its end', () => !isAlive(read()));
});

test('check › a stop ends it at once, and is no result', async t => {
	const {path, read} = pidFile(t);
	const mute = await listen(
		t,
		createTcpServer(() => {}),
	);
	for (const check of [http(mute), grpc(mute), exec('/bin/sh', '-c', `echo $$ > ${path}; exec sleep 600`)]) {
		const stopping = new AbortController();
		const running = run(check, patientMs, stopping.signal);
		if (check.kind === 'exec') await until('the program', read);
		stopping.abort(new Error('stop'));
		await t.throwsAsync(running, {message: 'stop'});
	}
	await until('its end', () => !isAlive(read()));
});
