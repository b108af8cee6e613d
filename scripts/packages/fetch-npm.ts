import {execFile} from 'node:child_process';
import {createHash} from 'node:crypto';
import {existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync} from 'node:fs';
import {join, resolve} from 'node:path';
import {promisify} from 'node:util';

const run = promisify(execFile);

interface Locked {
	readonly version: string;
	readonly integrity: string;
}

/** npm runs on the Node it came with: that one trusts what this machine trusts. */
const systemPath = (): string =>
	(process.env['PATH'] ?? '')
		.split(':')
		.filter(directory => !directory.endsWith('node_modules/.bin'))
		.join(':');

/**
 * Folder of a package that npm has left out as it is for another processor: fetched by npm, checked against the lock file,
 * and kept in `.cache/npm/`. One that is installed is taken from there.
 */
export async function ensureNpmPackage(name: string, say: (line: string) => void): Promise<string> {
	const installed = `node_modules/${name}`;
	if (existsSync(`${installed}/package.json`)) return installed;
	const {packages} = JSON.parse(readFileSync('package-lock.json', 'utf8')) as {packages: Record<string, Locked>};
	const locked = packages[installed];
	if (!locked) throw new Error(`fetch ${name}: it is not in package-lock.json`);
	const {version, integrity} = locked;
	const cache = resolve('.cache/npm');
	const target = join(cache, `${name.replace('/', '+')}-${version}`);
	if (existsSync(target)) return target;
	mkdirSync(cache, {recursive: true});
	const scratch = mkdtempSync(join(cache, 'fetch-'));
	try {
		say(`fetching ${name} ${version} with npm`);
		const words = ['pack', '--json', '--fetch-retries=1', '--pack-destination', scratch, `${name}@${version}`];
		const {stdout} = await run('npm', words, {env: {...process.env, PATH: systemPath()}, timeout: 300_000});
		const [{filename}] = JSON.parse(stdout) as [{filename: string}];
		const archive = join(scratch, filename.replace('@', '').replace('/', '-'));
		const digest = `sha512-${createHash('sha512').update(readFileSync(archive)).digest('base64')}`;
		if (digest !== integrity) throw new Error(`fetch ${name} ${version}: its hash is ${digest}, not ${integrity}`);
		await run('tar', ['-xzf', archive, '-C', scratch, '--no-same-owner']);
		try {
			renameSync(join(scratch, 'package'), target);
		} catch (error) {
			if (!existsSync(target)) throw error; // Another process was faster.
		}
		return target;
	} finally {
		rmSync(scratch, {recursive: true, force: true});
	}
}
