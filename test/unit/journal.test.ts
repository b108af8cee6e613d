import {closeSync, fstatSync, mkdtempSync, openSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {isJournal} from '../../src/journal.ts';

test('journal › only the very stream that the variable names is the journal', t => {
	const directory = mkdtempSync(join(tmpdir(), 'onramp-journal-'));
	const fd = openSync(join(directory, 'stream'), 'w');
	t.teardown(() => rmSync(directory, {recursive: true}));
	const {dev, ino} = fstatSync(fd);
	t.true(isJournal(fd, `${dev}:${ino}`));
	t.false(isJournal(fd, `${dev}:${ino + 1}`), 'of who has started us, and whose output ours is not');
	t.false(isJournal(fd, undefined));
	t.false(isJournal(fd, ''));
	closeSync(fd);
	t.false(isJournal(fd, `${dev}:${ino}`), 'closed');
});
