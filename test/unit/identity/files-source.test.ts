import {mkdir, rename, rm, symlink, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import {generateKey} from '../../../src/identity/key.ts';
import type {TestCa} from './test-ca.ts';
import {createWorld, second, spiffeId} from './world.ts';

async function makePair(ca: TestCa) {
	const key = await generateKey('ecdsa-p256');
	return {chain: await ca.issue(key.privateKey, [spiffeId]), key: key.pem.reveal(), roots: ca.pem};
}

function filesIn(dir: string) {
	return {
		kind: 'files' as const,
		certPath: join(dir, 'tls.crt'),
		keyPath: join(dir, 'tls.key'),
		rootPath: join(dir, 'ca.crt'),
	};
}

async function write(dir: string, {chain, key, roots}: Awaited<ReturnType<typeof makePair>>): Promise<void> {
	const {certPath, keyPath, rootPath} = filesIn(dir);
	await mkdir(dir, {recursive: true});
	await Promise.all([writeFile(certPath, chain), writeFile(keyPath, key), writeFile(rootPath, roots)]);
}

test('files › are served, asking nobody and keeping no state', async t => {
	const world = await createWorld(t);
	const pair = await makePair(world.ca);
	await write(world.dir, pair);
	const identity = await world.start({source: filesIn(world.dir)});
	const certificate = await world.until(() => identity.current());
	t.is(certificate.origin, 'files');
	t.is(certificate.chainPem, pair.chain);
	t.is(world.requests.length, 0);
	t.true(world.readiness.isReady);
});

test('files › that are not there yet are waited for, and status says which', async t => {
	const world = await createWorld(t);
	const identity = await world.start({source: filesIn(join(world.dir, 'later'))});
	await world.until(() => identity.status().lastError);
	t.is(identity.status().state, 'awaiting-certificate');
	t.is(identity.status().lastError?.code, 'identity.source_unusable');
	t.regex(identity.status().lastError!.message, /tls.crt: no such file/);
	t.false(world.readiness.isReady);
	await write(join(world.dir, 'later'), await makePair(world.ca));
	await world.until(() => identity.current());
	await world.until(() => identity.status().lastError === undefined);
	t.is(identity.status().state, 'serving');
});

test('files › written anew one by one are loaded when key and chain fit, and the old pair serves until then', async t => {
	const world = await createWorld(t);
	await write(world.dir, await makePair(world.ca));
	const source = filesIn(world.dir);
	const identity = await world.start({source});
	const before = await world.until(() => identity.current());
	const next = await makePair(world.ca);
	await writeFile(source.certPath, next.chain);
	await world.clock.advance(5 * second);
	t.is(identity.current(), before);
	t.is(identity.status().state, 'serving');
	await writeFile(source.keyPath, next.key);
	const after = await world.until(() => identity.current() !== before && identity.current());
	t.is(after.chainPem, next.chain);
	t.is(after.generation, before.generation + 1);
});

test('files › that do not fit for long are told, the old pair stays', async t => {
	const world = await createWorld(t);
	await write(world.dir, await makePair(world.ca));
	const source = filesIn(world.dir);
	const identity = await world.start({source});
	const before = await world.until(() => identity.current());
	await writeFile(source.keyPath, 'rubbish');
	await world.until(() => identity.status().lastError);
	t.is(identity.status().state, 'serving-stale');
	t.regex(identity.status().lastError!.message, /private key cannot be read/);
	t.is(identity.current(), before);
	t.true(world.readiness.isReady);
});

test('files › reached through a swapped symlink, as Kubernetes does, are noticed', async t => {
	const world = await createWorld(t);
	const {dir} = world;
	const next = await makePair(world.ca);
	await write(join(dir, '..2030_1'), await makePair(world.ca));
	await write(join(dir, '..2030_2'), next);
	await symlink('..2030_1', join(dir, '..data'));
	for (const name of ['tls.crt', 'tls.key', 'ca.crt']) await symlink(`..data/${name}`, join(dir, name));
	const identity = await world.start({source: filesIn(dir)});
	await world.until(() => identity.current());
	await symlink('..2030_2', join(dir, '..data_tmp'));
	await rename(join(dir, '..data_tmp'), join(dir, '..data'));
	await rm(join(dir, '..2030_1'), {recursive: true});
	await world.until(() => identity.current()?.chainPem === next.chain);
	t.is(identity.status().lastError, undefined);
});

test('files › an output directory that is the source is not written to', async t => {
	const world = await createWorld(t);
	await write(world.dir, await makePair(world.ca));
	const identity = await world.start({source: filesIn(world.dir), outputDir: world.dir});
	await world.until(() => identity.current());
	await identity.stop();
	await t.throwsAsync(rm(join(world.dir, 'cert-chain.pem')), {code: 'ENOENT'});
});
