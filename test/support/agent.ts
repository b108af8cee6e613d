import {execFile} from 'node:child_process';
import {mkdir, readdir, rename, rm, stat} from 'node:fs/promises';
import {dirname, join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {promisify} from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const bundle = join(root, '.cache', 'agent', 'onramp.cjs');

/** What the bundle is made from. */
const sources = ['src', 'scripts/build.ts', 'package-lock.json'];

let built: Promise<string> | undefined;

/**
 * Path of the agent's bundle, as packages ship it; made anew when a source is newer. Not `dist/`, which a person may
 * be running; and renamed into place, so that several test processes may build at once.
 */
export function ensureAgent(): Promise<string> {
	built ??= build();
	return built;
}

async function build(): Promise<string> {
	const newest = Math.max(...(await Promise.all(sources.map(name => newestMs(join(root, name))))));
	const age = await stat(bundle).then(
		({mtimeMs}) => mtimeMs,
		() => 0,
	);
	if (age > newest) return bundle;
	await mkdir(dirname(bundle), {recursive: true});
	const scratch = `${bundle}.${process.pid}`;
	try {
		await promisify(execFile)(process.execPath, ['scripts/build.ts', scratch], {cwd: root});
		await rename(scratch, bundle);
	} finally {
		await rm(scratch, {force: true});
	}
	return bundle;
}

async function newestMs(path: string): Promise<number> {
	const own = await stat(path);
	if (!own.isDirectory()) return own.mtimeMs;
	const names = await readdir(path, {recursive: true});
	const times = await Promise.all(names.map(async name => (await stat(join(path, name))).mtimeMs));
	return Math.max(own.mtimeMs, ...times);
}
