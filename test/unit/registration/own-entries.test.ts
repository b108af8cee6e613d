import {chmod, mkdtemp, readFile, rm, stat, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {silentLogger} from '../../../src/log.ts';
import type {MachineMarks} from '../../../src/registration/machine.ts';
import {openOwnEntries} from '../../../src/registration/own-entries.ts';

async function makeDirectory(t: ExecutionContext): Promise<string> {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-own-'));
	t.teardown(async () => {
		await chmod(directory, 0o700);
		await rm(directory, {recursive: true, force: true});
	});
	return directory;
}

const marks: MachineMarks = {macs: ['02:00:00:00:00:01']};
const open = (stateDir: string, of = marks) => openOwnEntries({stateDir, marks: of, log: silentLogger});

test('own entries › which machine we are, and what we have made, outlive the agent', async t => {
	const directory = await makeDirectory(t);
	const first = await open(join(directory, 'registration'));
	await first.add('bar/a');
	await first.add('bar/b');
	await first.remove('bar/a');
	const second = await open(join(directory, 'registration'));
	t.is(second.instance, first.instance);
	t.deepEqual(second.list(), ['bar/b']);
	t.is((await stat(join(directory, 'registration/instance.json'))).mode & 0o777, 0o600);
});

test('own entries › a copied disk is another machine, and has made nothing', async t => {
	const directory = await makeDirectory(t);
	const first = await open(directory);
	await first.add('bar/a');
	const copy = await open(directory, {macs: ['02:00:00:00:00:02']});
	t.not(copy.instance, first.instance);
	t.deepEqual(copy.list(), []);
	t.is((await open(directory, {macs: ['02:00:00:00:00:02']})).instance, copy.instance);
});

test('own entries › a record that is damaged or of another version makes a new machine', async t => {
	const directory = await makeDirectory(t);
	const {instance} = await open(directory);
	const path = join(directory, 'instance.json');
	const text = await readFile(path, 'utf8');
	for (const damaged of [
		'',
		'{',
		text.slice(0, -9),
		text.replace('"format":1', '"format":2'),
		text.replace('[]', '["../x"]'),
	]) {
		await writeFile(path, damaged);
		const opened = await open(directory);
		t.not(opened.instance, instance);
		t.deepEqual(opened.list(), []);
	}
});

test('own entries › what cannot be kept counts until the agent ends', async t => {
	const directory = await makeDirectory(t);
	await writeFile(join(directory, 'file'), '');
	const own = await open(join(directory, 'file'));
	await own.add('bar/a');
	t.deepEqual(own.list(), ['bar/a']);
});
