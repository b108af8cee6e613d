import {createHash} from 'node:crypto';
import {readFile, readlink} from 'node:fs/promises';
import {
	type DurableFs,
	replaceSymlink,
	syncDirectory,
	systemFs,
	temporaryName,
	temporaryPrefix,
	writeFileAtomic,
	writeNewFile,
} from '../lifecycle/atomic-file.ts';
import type {WorkloadCertificate} from './types.ts';

interface OutputFile {
	readonly name: string;
	readonly text: string;
	readonly mode: number;
}

const viewPrefix = '.onramp-view-';

/**
 * Writes the pair for other programs in the layout of Istio's OUTPUT_CERTS: `root-cert.pem`, `key.pem`,
 * `cert-chain.pem`, each replaced in one step and only when its bytes differ. The roots come first, so that a new chain
 * never meets a reader without its root; the chain comes last, since programs watch that file and then read the key.
 *
 * Between the two renames a reader can see a key and a chain that do not fit. Who needs them whole reads through
 * `current/`, a symlink to a directory that is swapped in one step and whose predecessor is left for a reader under way.
 */
export async function writeOutput(
	dir: string,
	certificate: WorkloadCertificate,
	keyMode: number,
	fs: DurableFs = systemFs,
): Promise<void> {
	const {trustBundlePem, keyPem, chainPem} = certificate;
	// The same file may anchor the trust in the control plane: an empty one would lock the agent out.
	if (trustBundlePem === '') throw new Error('the trust bundle is empty');
	const files: OutputFile[] = [
		{name: 'root-cert.pem', text: trustBundlePem, mode: 0o644},
		{name: 'key.pem', text: keyPem.reveal(), mode: keyMode},
		{name: 'cert-chain.pem', text: chainPem, mode: 0o644},
	];
	await fs.mkdir(dir, {recursive: true, mode: 0o755});
	await removeEntries(dir, fs, name => name.startsWith(temporaryPrefix));
	for (const {name, text, mode} of files) {
		if (!(await holds(`${dir}/${name}`, text))) await writeFileAtomic(`${dir}/${name}`, text, mode, fs);
	}
	await swapView(dir, files, fs);
}

async function swapView(dir: string, files: readonly OutputFile[], fs: DurableFs): Promise<void> {
	const hash = createHash('sha256');
	for (const {text} of files) hash.update(text);
	const view = `${viewPrefix}${hash.digest('hex').slice(0, 16)}`;
	const before = await readlink(`${dir}/current`).catch(() => undefined); // absent, or not a link: made anew
	if (before === view) return;
	const temporary = `${dir}/${temporaryName()}`;
	await fs.mkdir(temporary, {mode: 0o755});
	for (const {name, text, mode} of files) {
		await writeNewFile(`${temporary}/${name}`, text, mode, fs);
		await fs.chmod(`${temporary}/${name}`, mode);
	}
	await syncDirectory(temporary, fs);
	await fs.rm(`${dir}/${view}`, {recursive: true, force: true});
	await fs.rename(temporary, `${dir}/${view}`);
	await replaceSymlink(view, `${dir}/current`, fs);
	await removeEntries(dir, fs, name => name.startsWith(viewPrefix) && name !== view && name !== before);
}

async function removeEntries(dir: string, fs: DurableFs, isDoomed: (name: string) => boolean): Promise<void> {
	for (const name of await fs.readdir(dir)) {
		if (isDoomed(name)) await fs.rm(`${dir}/${name}`, {recursive: true, force: true});
	}
}

/** Whatever cannot be read is written anew, and that tells what is wrong. */
async function holds(path: string, text: string): Promise<boolean> {
	return (await readFile(path, 'utf8').catch(() => undefined)) === text;
}
