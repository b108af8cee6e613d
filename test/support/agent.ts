import {execFile} from 'node:child_process';
import {readdir, stat} from 'node:fs/promises';
import {dirname, join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {promisify} from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const bundle = join(root, 'dist', 'onramp.cjs');

/** What the bundle is made from. */
const sources = ['src', 'scripts/build.ts', 'package-lock.json'];

let built: Promise<string> | undefined;

/** Path of the agent as packages ship it; made anew, once a test process, when a source is newer. */
export function buildAgent(): Promise<string> {
	built ??= buildIfOlder();
	return built;
}

async function buildIfOlder(): Promise<string> {
	const newest = Math.max(...(await Promise.all(sources.map(name => newestMs(join(root, name))))));
	const builtMs = await stat(bundle).then(
		({mtimeMs}) => mtimeMs,
		() => 0,
	);
	// The build moves whole files into place, so that several test processes may do it at once.
	if (builtMs <= newest) await promisify(execFile)(process.execPath, ['scripts/build.ts'], {cwd: root});
	return bundle;
}

async function newestMs(path: string): Promise<number> {
	const own = await stat(path);
	if (!own.isDirectory()) return own.mtimeMs;
	const names = await readdir(path, {recursive: true});
	const times = await Promise.all(names.map(async name => (await stat(join(path, name))).mtimeMs));
	return Math.max(own.mtimeMs, ...times);
}
