// Packages of what is in the tree, for the tests of this folder.
import {execFile} from 'node:child_process';
import {existsSync, readdirSync} from 'node:fs';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {promisify} from 'node:util';
import type {ExecutionContext} from 'ava';
import {buildAgent} from '../../support/agent.ts';

const run = promisify(execFile);
export const root = join(import.meta.dirname, '../../..');

export async function makeDirectory(t: Pick<ExecutionContext, 'teardown'>): Promise<string> {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-packages-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	return directory;
}

/** Makes packages, hardly compressed, and returns where they are. */
export function makePackages(t: Pick<ExecutionContext, 'teardown'>, ...words: string[]): Promise<string> {
	return makeFullPackages(t, '--fast', ...words);
}

/** The same as they are published, which takes as long as a minute. */
export async function makeFullPackages(t: Pick<ExecutionContext, 'teardown'>, ...words: string[]): Promise<string> {
	await buildAgent();
	const out = await makeDirectory(t);
	await run(process.execPath, ['scripts/package.ts', '--out', out, ...words], {cwd: root});
	return out;
}

/** The one deb of a directory. */
export function debIn(directory: string): string {
	const found = readdirSync(directory).filter(name => name.endsWith('.deb'));
	if (found.length !== 1) throw new Error(`${found.length} debs in ${directory}`);
	return join(directory, found[0]!);
}

/** Whether all of these programs are there; otherwise the test says what it was skipped for. */
export function has(t: ExecutionContext, ...programs: string[]): boolean {
	const missing = programs.filter(name => !['/usr/bin', '/usr/sbin'].some(folder => existsSync(join(folder, name))));
	if (missing.length === 0) return true;
	t.log(`skipped: needs ${missing.join(', ')}`);
	t.pass();
	return false;
}

/** Paths of all files, which are root's and nobody else's to write. */
export async function listDeb(t: ExecutionContext, deb: string): Promise<string[]> {
	const {stdout} = await run('dpkg-deb', ['-c', deb]);
	const lines = stdout
		.trim()
		.split('\n')
		.filter(line => !line.startsWith('d'));
	for (const line of lines) t.regex(line, /^(-rw-r--r--|-rwxr-xr-x|l---------) root\/root/, line);
	return lines.map(line => /\.(\/\S+)/.exec(line)![1]!);
}
