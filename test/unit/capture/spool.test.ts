import {closeSync, readFileSync} from 'node:fs';
import {mkdtemp, readdir, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {spool} from '../../../src/capture/spool.ts';

async function temporaryDir(t: ExecutionContext): Promise<string> {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-spool-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	return directory;
}

function contentOf(descriptor: number | undefined): string {
	const text = readFileSync(descriptor!, 'utf8');
	closeSync(descriptor!);
	return text;
}

test('spool › the first place that takes the whole is used, and no name is left in it', async t => {
	const directory = await temporaryDir(t);
	const text = 'rules\n'.repeat(10_000);
	t.is(contentOf(spool(text, [join(directory, 'none'), directory])), text);
	t.deepEqual(await readdir(directory), []);
	t.is(contentOf(spool(text)), text, 'and this machine has one');
});

test('spool › nothing to read needs no file', t => {
	t.is(spool('', ['/nonexistent']), undefined);
});

test('spool › where no place takes it, each is told with its reason', t => {
	const error = t.throws(() => spool('rules', ['/nonexistent', '/proc']), {code: 'capture.no_room'});
	t.regex(error!.message, /^put rules into a file .*: ENOENT.*\/nonexistent.*; E\w+.*\/proc/);
});
