import {mkdtemp, readdir, readFile, readlink, rm, symlink, truncate, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {openStore, type StoredPair} from '../../../src/identity/store.ts';
import {type DurableFile, type DurableFs, systemFs, temporaryPrefix} from '../../../src/lifecycle/atomic-file.ts';
import {Secret} from '../../../src/log.ts';

async function createDir(t: ExecutionContext): Promise<string> {
	const dir = await mkdtemp(join(tmpdir(), 'onramp-store-'));
	t.teardown(() => rm(dir, {recursive: true, force: true}));
	return dir;
}

/** The store does not look into what it keeps, so a tag in each part is enough to see a mixture. */
function tagged(tag: string): StoredPair {
	return {
		keyPem: new Secret(`key ${tag}\n`),
		chainPem: `chain ${tag}\n`,
		rootsPem: `roots ${tag}\n`,
		receivedAt: new Date('2030-01-01T00:00:00Z'),
		requestedSpiffeId: 'spiffe://td/ns/a/sa/b',
		isTokenless: false,
	};
}

function tagOf({keyPem, chainPem, rootsPem}: StoredPair): string {
	const tags = [keyPem.reveal(), chainPem, rootsPem].map(text => text.trim().split(' ')[1]!);
	if (new Set(tags).size !== 1) throw new Error(`a mixture of ${tags.join(', ')}`);
	return tags[0]!;
}

/**
 * A disk whose machine dies at the n-th call: that call does half of what it can do by halves, or nothing, and none
 * after it does anything, the clean-up of the dying process included.
 */
function dyingFs(callsToLive: number): {fs: DurableFs; isDead: () => boolean} {
	let left = callsToLive;
	const dies = () => left-- <= 0;
	const die = () => new Error('the machine has died');
	const guard =
		<A extends unknown[], R>(call: (...args: A) => Promise<R>) =>
		async (...args: A): Promise<R> => {
			if (dies()) throw die();
			return call(...args);
		};
	const wrap = (file: DurableFile): DurableFile => ({
		writeFile: async data => {
			if (dies()) {
				if (left === -1 && typeof data === 'string') await file.writeFile(data.slice(0, data.length / 2));
				throw die();
			}
			await file.writeFile(data);
		},
		sync: guard(() => file.sync()),
		close: async () => {
			await file.close(); // the test must not leak it
			if (dies()) throw die();
		},
	});
	return {
		fs: {
			open: guard(async (path, flags, mode) => wrap(await systemFs.open(path, flags, mode))),
			mkdir: guard(systemFs.mkdir),
			rename: guard(systemFs.rename),
			link: guard(systemFs.link),
			symlink: guard(systemFs.symlink),
			chmod: guard(systemFs.chmod),
			rm: guard(systemFs.rm),
			readdir: guard(systemFs.readdir),
			stat: guard(systemFs.stat),
		},
		isDead: () => left < 0,
	};
}

test('store › death at any call of a write leaves the old pair or the new one, whole', async t => {
	let deaths = 0;
	const found = new Set<string>();
	for (let calls = 0; ; calls++) {
		const dir = await createDir(t);
		const before = openStore(dir);
		await before.save(tagged('older'));
		await before.save(tagged('old'));
		const {fs, isDead} = dyingFs(calls);
		const store = openStore(dir, fs);
		await store.load().catch(() => {});
		const acknowledged = await store.save(tagged('new')).then(
			() => true,
			() => false,
		);
		const next = openStore(dir);
		await next.removeLeftovers();
		const {generations, problems} = await next.load();
		const tag = tagOf(generations[0]!);
		t.true(tag === 'old' || tag === 'new', `died at call ${calls}`);
		if (acknowledged) t.is(tag, 'new', `what was acknowledged is kept, died at call ${calls}`);
		t.deepEqual(problems, [], `nothing half-written is to be seen, died at call ${calls}`);
		found.add(tag);
		await next.save(tagged('after'));
		t.is(tagOf((await openStore(dir).load()).generations[0]!), 'after', 'and the next write works');
		for (const name of [...(await readdir(dir)), ...(await readdir(join(dir, 'generations')))]) {
			t.false(name.startsWith(temporaryPrefix), `${name} was left behind, died at call ${calls}`);
		}
		if (!isDead()) break;
		deaths++;
	}
	t.deepEqual([...found], ['old', 'new']);
	t.true(deaths > 20, `${deaths} places to die`);
});

/** Notes what is done to the disk, in order: names without directories, and `*` for the random part of a name. */
function recordingFs(dir: string): {fs: DurableFs; calls: string[]} {
	const calls: string[] = [];
	const nameOf = (path: string) =>
		path.slice(dir.length + 1).replace(new RegExp(`${temporaryPrefix.replaceAll('.', '\\.')}[-\\w]+`), 'new*') || '.';
	const fs: DurableFs = {
		...systemFs,
		open: async (path, flags, mode) => {
			const file = await systemFs.open(path, flags, mode);
			return {
				writeFile: async data => {
					calls.push(`write ${nameOf(path)}`);
					await file.writeFile(data);
				},
				sync: async () => {
					await file.sync();
					calls.push(`sync ${nameOf(path)}`);
				},
				close: () => file.close(),
			};
		},
		rename: async (from, to) => {
			calls.push(`rename ${nameOf(from)} ${nameOf(to)}`);
			await systemFs.rename(from, to);
		},
		symlink: (target, path) => {
			calls.push(`symlink ${nameOf(path)}`);
			return systemFs.symlink(target, path);
		},
	};
	return {fs, calls};
}

test('store › every byte is on the disk before the rename that shows it, and the rename before anybody hears of it', async t => {
	const dir = await createDir(t);
	const {fs, calls} = recordingFs(dir);
	const store = openStore(dir, fs);
	await store.save(tagged('first'));
	const parts = ['key.pem', 'cert-chain.pem', 'roots.pem', 'meta.json'];
	t.is(calls.shift(), 'sync .', 'the directory of all generations is new');
	t.deepEqual(calls, [
		...parts.flatMap(name => [`write generations/new*/${name}`, `sync generations/new*/${name}`]),
		'sync generations/new*',
		'rename generations/new* generations/000001',
		'sync generations',
		...['symlink new*', 'rename new* current', 'sync .'],
	]);
});

test('store › keeps the newest two generations and points at the newest', async t => {
	const dir = await createDir(t);
	const store = openStore(dir);
	for (const tag of ['a', 'b', 'c', 'd']) await store.save(tagged(tag));
	t.deepEqual((await readdir(join(dir, 'generations'))).sort(), ['000003', '000004']);
	t.is(await readlink(join(dir, 'current')), 'generations/000004');
	t.is(await readFile(join(dir, 'current/cert-chain.pem'), 'utf8'), 'chain d\n');
});

test('store › does not throw the last good generation away for a damaged newer one', async t => {
	const dir = await createDir(t);
	const first = openStore(dir);
	await first.save(tagged('good'));
	await first.save(tagged('damaged'));
	await truncate(join(dir, 'generations/000002/roots.pem'), 3);
	const store = openStore(dir);
	await store.load();
	await store.save(tagged('new'));
	t.deepEqual((await readdir(join(dir, 'generations'))).sort(), ['000001', '000003']);
});

const damages: [string, (generation: string) => Promise<unknown>][] = [
	['a truncated key', generation => truncate(join(generation, 'key.pem'), 2)],
	['an empty chain', generation => truncate(join(generation, 'cert-chain.pem'), 0)],
	['a changed byte', generation => writeFile(join(generation, 'roots.pem'), 'roots neW\n')],
	['a missing file', generation => rm(join(generation, 'roots.pem'))],
	['a missing meta.json', generation => rm(join(generation, 'meta.json'))],
	['an empty meta.json', generation => writeFile(join(generation, 'meta.json'), '')],
	['a meta.json of null', generation => writeFile(join(generation, 'meta.json'), 'null')],
	['a meta.json of a later version', generation => writeFile(join(generation, 'meta.json'), '{"version":2}')],
	[
		'a meta.json without checksums',
		generation =>
			writeFile(join(generation, 'meta.json'), '{"version":1,"receivedAt":"2030-01-01","requestedSpiffeId":""}'),
	],
	[
		'a symlink for a key',
		async generation => {
			await rm(join(generation, 'key.pem'));
			await writeFile(join(generation, 'elsewhere'), 'key new\n');
			await symlink('elsewhere', join(generation, 'key.pem'));
		},
	],
	['a key that others can write', generation => systemFs.chmod(join(generation, 'key.pem'), 0o620)],
];
for (const [what, damage] of damages) {
	test(`store › ${what} makes it use the generation before`, async t => {
		const dir = await createDir(t);
		const store = openStore(dir);
		await store.save(tagged('old'));
		await store.save(tagged('new'));
		t.is(tagOf((await store.load()).generations[0]!), 'new');
		await damage(join(dir, 'generations/000002'));
		const {generations, problems} = await store.load();
		t.is(tagOf(generations[0]!), 'old');
		t.is(problems.length, 1);
		t.regex(problems[0]!, /generations\/000002 is not used/);
		t.notRegex(problems[0]!, /key new/);
	});
}

test('store › files of another user are not used', async t => {
	const dir = await createDir(t);
	await openStore(dir).save(tagged('mine'));
	const {generations, problems} = await openStore(dir, systemFs, 4711).load();
	t.deepEqual(generations, []);
	t.regex(problems[0]!, /is owned by uid \d+, not 4711/);
});

test('store › an empty directory holds nothing, without complaint', async t => {
	t.deepEqual(await openStore(await createDir(t)).load(), {generations: [], problems: []});
});
