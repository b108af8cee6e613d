import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {generateKey} from '../../../src/identity/key.ts';
import {certificateSecret, renderUpdate, rootsSecret, secretType, startSdsServer} from '../../support/sds-server.ts';
import {createCa, type TestCa} from './test-ca.ts';
import {createWorld, eventually, second, spiffeId} from './world.ts';

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
