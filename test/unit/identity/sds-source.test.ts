import {join} from 'node:path';
import {Server, ServerCredentials, type ServerDuplexStream} from '@grpc/grpc-js';
import test, {type ExecutionContext} from 'ava';
import {generateKey} from '../../../src/identity/key.ts';
import {FieldReader, FieldWriter} from '../../../src/proto/wire.ts';
import {createCa, type TestCa} from './test-ca.ts';
import {createWorld, eventually, second, spiffeId} from './world.ts';

const secretType = 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret';

interface Request {
	readonly version: string;
	readonly nodeId: string;
	readonly names: readonly string[];
	readonly typeUrl: string;
	readonly nonce: string;
	readonly error: string | undefined;
}

/** An SDS server on a socket, as SPIRE has one; what it answers is in the test's hands. */
async function startSdsServer(t: ExecutionContext, socketPath: string) {
	const requests: Request[] = [];
	const streams: ServerDuplexStream<Buffer, Buffer>[] = [];
	const server = new Server();
	const passThrough = (buffer: Buffer) => buffer;
	server.register(
		'/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets',
		(stream: ServerDuplexStream<Buffer, Buffer>) => {
			streams.push(stream);
			stream.on('data', (buffer: Buffer) => requests.push(parseRequest(buffer)));
			stream.on('error', () => {});
		},
		passThrough,
		passThrough,
		'bidi',
	);
	await new Promise<void>((resolve, reject) => {
		server.bindAsync(`unix:${socketPath}`, ServerCredentials.createInsecure(), error =>
			error ? reject(error) : resolve(),
		);
	});
	t.teardown(() => server.forceShutdown());
	return {
		requests,
		streams,
		send: (answer: Buffer) => streams.at(-1)!.write(answer),
		stop: () => server.forceShutdown(),
	};
}

function parseRequest(buffer: Buffer): Request {
	const request = {
		version: '',
		nodeId: '',
		names: [] as string[],
		typeUrl: '',
		nonce: '',
		error: undefined as string | undefined,
	};
	const reader = new FieldReader(buffer);
	while (reader.next()) {
		if (reader.number === 1) request.version = reader.string();
		if (reader.number === 2) request.nodeId = firstString(reader.message(), 1);
		if (reader.number === 3) request.names.push(reader.string());
		if (reader.number === 4) request.typeUrl = reader.string();
		if (reader.number === 5) request.nonce = reader.string();
		if (reader.number === 6) request.error = firstString(reader.message(), 2);
	}
	return request;
}

function firstString(reader: FieldReader, number: number): string {
	while (reader.next()) if (reader.number === number) return reader.string();
	return '';
}

function renderUpdate(version: string, secrets: readonly FieldWriter[]): Buffer {
	const writer = new FieldWriter().string(1, version);
	for (const secret of secrets) writer.message(2, any => any.string(1, secretType).append(2, secret));
	return writer.string(4, secretType).string(5, `nonce-${version}`).finish();
}

const inline = (text: string) => (source: FieldWriter) => void source.string(2, text);

function certificateSecret({chain, key}: {chain: string; key: string}): FieldWriter {
	return new FieldWriter()
		.string(1, 'default')
		.message(2, tls => tls.message(1, inline(chain)).message(2, inline(key)));
}

function rootsSecret(roots: string): FieldWriter {
	return new FieldWriter().string(1, 'ROOTCA').message(4, context => context.message(1, inline(roots)));
}

async function makePair(ca: TestCa) {
	const key = await generateKey('ecdsa-p256');
	return {chain: await ca.issue(key.privateKey, [spiffeId]), key: key.pem.reveal()};
}

async function createSdsWorld(t: ExecutionContext) {
	const world = await createWorld(t);
	const socketPath = join(world.dir, 'sds.sock');
	return {world, socketPath, start: () => world.start({source: {kind: 'sds', socketPath}})};
}

test('sds › certificate and roots may come apart, both are acknowledged, and then they are served', async t => {
	const {world, socketPath, start} = await createSdsWorld(t);
	const server = await startSdsServer(t, socketPath);
	const identity = await start();
	await eventually(() => server.requests.length === 1);
	t.deepEqual(server.requests[0]!.names, ['default', 'ROOTCA']);
	t.is(server.requests[0]!.typeUrl, secretType);
	t.is(server.requests[0]!.nonce, '');
	t.not(server.requests[0]!.nodeId, '');
	const pair = await makePair(world.ca);
	server.send(renderUpdate('1', [certificateSecret(pair)]));
	await eventually(() => server.requests.length === 2);
	t.is(identity.current(), undefined);
	server.send(renderUpdate('2', [rootsSecret(world.ca.pem)]));
	await eventually(() => identity.current() !== undefined && server.requests.length === 3);
	t.is(identity.current()!.origin, 'sds');
	t.is(identity.current()!.chainPem, pair.chain);
	t.deepEqual(
		server.requests.slice(1).map(({version, nonce, error}) => [version, nonce, error]),
		[
			['1', 'nonce-1', undefined],
			['2', 'nonce-2', undefined],
		],
	);
	t.true(world.readiness.isReady);
});

test('sds › a secret that does not fit is refused with its reason, the old one stays', async t => {
	const {world, socketPath, start} = await createSdsWorld(t);
	const server = await startSdsServer(t, socketPath);
	const identity = await start();
	await eventually(() => server.requests.length === 1);
	server.send(renderUpdate('1', [certificateSecret(await makePair(world.ca)), rootsSecret(world.ca.pem)]));
	await eventually(() => server.requests.length === 2);
	const before = identity.current();
	server.send(renderUpdate('2', [certificateSecret(await makePair(await createCa()))]));
	await eventually(() => server.requests.length === 3);
	t.deepEqual([server.requests[2]!.version, server.requests[2]!.nonce], ['1', 'nonce-2']);
	t.regex(server.requests[2]!.error!, /no root of the trust bundle/);
	t.is(identity.current(), before);
	t.is(identity.status().state, 'serving-stale');
});

test('sds › a server that is away is tried again, and what it gave is served meanwhile', async t => {
	const {world, socketPath, start} = await createSdsWorld(t);
	const identity = await start();
	await world.until(() => identity.status().attempts > 1);
	t.is(identity.status().state, 'awaiting-certificate');
	t.is(identity.status().lastError?.code, 'identity.source_unusable');
	t.regex(identity.status().lastError!.message, /sds.sock/);
	const server = await startSdsServer(t, socketPath);
	await world.until(() => server.requests.length > 0);
	server.send(renderUpdate('1', [certificateSecret(await makePair(world.ca)), rootsSecret(world.ca.pem)]));
	await world.until(() => identity.current());
	server.stop();
	await world.until(() => identity.status().lastError !== undefined);
	t.truthy(identity.current());
	await world.clock.advance(second);
	const again = await startSdsServer(t, socketPath);
	await world.until(() => again.requests.length > 0);
	t.is(again.requests[0]!.version, '', 'a new stream starts clean');
});

test('sds › bytes that are no answer end the stream, not the agent', async t => {
	const {world, socketPath, start} = await createSdsWorld(t);
	const server = await startSdsServer(t, socketPath);
	const identity = await start();
	await eventually(() => server.requests.length === 1);
	server.send(Buffer.from('ffffffffffffff', 'hex'));
	await world.until(() => server.streams.length > 1);
	t.is(identity.status().state, 'awaiting-certificate');
});
