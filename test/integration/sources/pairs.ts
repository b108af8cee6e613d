// Certificates of the mesh's CA that reach the agent by another way than its own request.
import {mkdir, rename, symlink, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {renderCsr} from '../../../src/identity/csr.ts';
import {generateKey} from '../../../src/identity/key.ts';
import type {Sandbox} from '../../../src/sandbox/index.ts';

export interface Pair {
	readonly chain: string;
	readonly key: string;
	readonly roots: string;
}

export async function makePair(sandbox: Sandbox, spiffeId: string, lifetimeMs = 3_600_000): Promise<Pair> {
	const key = await generateKey('ecdsa-p256');
	const elements = sandbox.issueCertificate(renderCsr(key, spiffeId), {spiffeId, lifetimeMs});
	return {chain: elements.slice(0, -1).join(''), key: key.pem.reveal(), roots: elements.at(-1)!};
}

const names = {cert: 'cert-chain.pem', key: 'key.pem', root: 'root-cert.pem'} as const;

export const flagsOfFiles = (directory: string): readonly string[] => [
	...['--identity-source', 'files'],
	...Object.entries(names).flatMap(([kind, name]) => [`--identity-${kind}`, join(directory, name)]),
];

let version = 0;

/** As Kubernetes mounts a secret: the names are links through `..data`, which is replaced in one step. */
export async function mountPair(directory: string, {chain, key, roots}: Pair): Promise<void> {
	const generation = `..${++version}`;
	await mkdir(join(directory, generation), {recursive: true});
	const contents = {[names.cert]: chain, [names.key]: key, [names.root]: roots};
	for (const [name, content] of Object.entries(contents)) {
		await writeFile(join(directory, generation, name), content, {mode: 0o600});
		await symlink(join('..data', name), join(directory, name)).catch(() => {}); // there since the first time
	}
	await symlink(generation, join(directory, '..data.new'));
	await rename(join(directory, '..data.new'), join(directory, '..data'));
}
