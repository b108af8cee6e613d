import {mkdtemp, readFile, rm, stat, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {loadTable, saveTable, TableSaver} from '../../../src/dns/saved-table.ts';
import {systemFs} from '../../../src/lifecycle/atomic-file.ts';
import {systemClock} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {ask, encodeTable, meshTable, startWorld, until} from './world.ts';

async function directoryOf(t: {teardown: (end: () => Promise<void>) => void}): Promise<string> {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-names-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	return directory;
}

const receivedAt = new Date('2026-11-01T00:00:00Z');

test('saved table › is what was saved, readable to nobody else', async t => {
	const path = join(await directoryOf(t), 'dns', 'names');
	t.is(await loadTable(path), undefined);
	await saveTable(path, {table: meshTable, receivedAt});
	t.deepEqual(await loadTable(path), {table: meshTable, receivedAt});
	t.is((await stat(path)).mode & 0o777, 0o600);
});

test('saved table › a damaged, foreign or cut file is refused, each with why', async t => {
	const path = join(await directoryOf(t), 'names');
	await saveTable(path, {table: meshTable, receivedAt});
	const good = await readFile(path);
	const flipped = Buffer.from(good);
	flipped[flipped.length - 1]! ^= 1;
	await writeFile(path, flipped);
	await t.throwsAsync(loadTable(path), {message: /checksum/});
	await writeFile(path, good.subarray(0, good.length - 10));
	await t.throwsAsync(loadTable(path), {message: /checksum/});
	await writeFile(path, 'onramp names 2\n' + good.toString('latin1').slice(15));
	await t.throwsAsync(loadTable(path), {message: /not a name table of this version/});
	await writeFile(path, '');
	await t.throwsAsync(loadTable(path), {message: /not a name table of this version/});
});

test('saved table › answers names before the control plane does, and opens the gate', async t => {
	const directory = await directoryOf(t);
	await saveTable(join(directory, 'dns', 'names'), {table: meshTable, receivedAt});
	const world = await startWorld(t, {}, {directory, resolvConf: ''});
	t.deepEqual((await ask(world, 'cart')).values, ['10.0.0.2'], 'the first question waits for the disk');
	t.true(world.readiness.isReady);
	t.like(world.dns.status(), {table: 'saved', tableReceivedAt: receivedAt.toISOString()});
	world.dns.setNameTable(encodeTable({'cart.shop.svc.cluster.local': {addresses: ['10.9.9.9']}}));
	t.is(world.dns.status().table, 'control plane');
	await world.dns.stop();
	t.true((await loadTable(join(directory, 'dns', 'names')))!.table.includes('10.9.9.9'), 'a stop saves what is left');
});

test('saved table › a damaged one is told and left aside', async t => {
	const directory = await directoryOf(t);
	await saveTable(join(directory, 'dns', 'names'), {table: Buffer.from([0x0a, 0x7f]), receivedAt});
	const world = await startWorld(t, {}, {directory, resolvConf: ''});
	await until(() => world.dns.status().table === 'none', 'it is not used');
	t.regex(world.dns.status().warnings.join(), /saved name table is not used/);
	world.dns.setNameTable(meshTable);
	t.deepEqual((await ask(world, 'cart')).values, ['10.0.0.2']);
	t.notRegex(world.dns.status().warnings.join(), /saved name table/);
});

test('saved table › a full disk is told and does no harm, and is written to when it can be', async t => {
	const path = join(await directoryOf(t), 'names');
	let isFull = true;
	const fs = {
		...systemFs,
		open: async (...args: Parameters<typeof systemFs.open>) => {
			if (isFull) throw Object.assign(new Error('ENOSPC: no space left on device'), {code: 'ENOSPC'});
			return systemFs.open(...args);
		},
	};
	const clock = {...systemClock, sleep: async () => {}};
	const saver = new TableSaver({path, clock, log: silentLogger, fs});
	saver.save({table: meshTable, receivedAt});
	await until(() => saver.problem !== undefined, 'the problem is told');
	t.regex(saver.problem!, /ENOSPC/);
	t.is(await loadTable(path), undefined);
	isFull = false;
	saver.save({table: meshTable, receivedAt});
	await saver.stop();
	t.is(saver.problem, undefined);
	t.deepEqual((await loadTable(path))!.table, meshTable);
});

test('saved table › of many tables in a row the last one is kept, and the same one is not written again', async t => {
	const path = join(await directoryOf(t), 'names');
	let writes = 0;
	const fs = {
		...systemFs,
		rename: async (from: string, to: string) => {
			writes++;
			await systemFs.rename(from, to);
		},
	};
	const saver = new TableSaver({path, clock: systemClock, log: silentLogger, fs});
	for (let round = 0; round < 50; round++)
		saver.save({table: encodeTable({'a.mesh': {addresses: [`10.0.0.${round}`]}}), receivedAt});
	await saver.stop();
	t.is(writes, 1);
	const {table} = (await loadTable(path))!;
	t.true(table.includes('10.0.0.49'));
	saver.save({table: Buffer.from(table), receivedAt});
	await saver.stop();
	t.is(writes, 1);
});
