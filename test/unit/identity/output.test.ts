import {mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {writeOutput} from '../../../src/identity/output.ts';
import type {WorkloadCertificate} from '../../../src/identity/types.ts';
import {Secret} from '../../../src/log.ts';

async function createDir(t: ExecutionContext): Promise<string> {
	const dir = await mkdtemp(join(tmpdir(), 'onramp-output-'));
	t.teardown(() => rm(dir, {recursive: true, force: true}));
	return dir;
}

function tagged(tag: string): WorkloadCertificate {
	const at = new Date(0);
	return {
		spiffeId: '',
		serial: '',
		notBefore: at,
		notAfter: at,
		receivedAt: at,
		origin: 'disk',
		generation: 1,
		keyPem: new Secret(`key ${tag}`),
		chainPem: `chain ${tag}`,
		trustBundlePem: `roots ${tag}`,
	};
}

const names = ['cert-chain.pem', 'key.pem', 'root-cert.pem'];
const read = (dir: string) => Promise.all(names.map(name => readFile(join(dir, name), 'utf8')));

test('output › writes Istio’s three files with their modes, and an atomic view of them', async t => {
	const dir = join(await createDir(t), 'made/when/missing');
	await writeOutput(dir, tagged('a'), 0o640);
	t.deepEqual(await read(dir), ['chain a', 'key a', 'roots a']);
	t.deepEqual(await read(join(dir, 'current')), ['chain a', 'key a', 'roots a']);
	for (const place of [dir, join(dir, 'current')]) {
		const modes = await Promise.all(names.map(async name => (await stat(join(place, name))).mode & 0o777));
		t.deepEqual(modes, [0o644, 0o640, 0o644]);
	}
});

test('output › leaves files alone whose bytes are the same', async t => {
	const dir = await createDir(t);
	await writeOutput(dir, tagged('a'), 0o600);
	const inodes = async () =>
		Promise.all([...names, 'current/key.pem'].map(async name => (await stat(join(dir, name))).ino));
	const before = await inodes();
	await writeOutput(dir, tagged('a'), 0o600);
	t.deepEqual(await inodes(), before);
	await writeOutput(dir, {...tagged('a'), chainPem: 'chain b'}, 0o600);
	const after = await inodes();
	t.not(after[0], before[0]);
	t.deepEqual(after.slice(1, 3), before.slice(1, 3));
});

test('output › a reader in the old view can finish; older views are removed', async t => {
	const dir = await createDir(t);
	for (const tag of ['a', 'b', 'c', 'd']) await writeOutput(dir, tagged(tag), 0o600);
	const views = (await readdir(dir)).filter(name => name.startsWith('.'));
	t.is(views.length, 2);
	t.deepEqual(await read(join(dir, 'current')), ['chain d', 'key d', 'roots d']);
});

test('output › never writes an empty trust bundle', async t => {
	const dir = await createDir(t);
	await writeOutput(dir, tagged('a'), 0o600);
	await t.throwsAsync(writeOutput(dir, {...tagged('b'), trustBundlePem: ''}, 0o600), {message: /empty/});
	t.deepEqual(await read(dir), ['chain a', 'key a', 'roots a']);
});

test('output › does not write through a symlink somebody put there', async t => {
	const dir = await createDir(t);
	const victim = join(await createDir(t), 'victim');
	await writeFile(victim, 'untouched');
	await symlink(victim, join(dir, 'key.pem'));
	await writeOutput(dir, tagged('a'), 0o600);
	t.is(await readFile(victim, 'utf8'), 'untouched');
	t.is(await readFile(join(dir, 'key.pem'), 'utf8'), 'key a');
});

test('output › removes its own leftovers and nobody else’s files', async t => {
	const dir = await createDir(t);
	await mkdir(join(dir, '.onramp-tmp-1-ab'));
	await writeFile(join(dir, '.tmp-other'), '');
	await writeFile(join(dir, 'other.pem'), '');
	await writeOutput(dir, tagged('a'), 0o600);
	t.deepEqual((await readdir(dir)).filter(name => !name.startsWith('.onramp-view-')).sort(), [
		'.tmp-other',
		...['cert-chain.pem', 'current', 'key.pem', 'other.pem', 'root-cert.pem'],
	]);
});
