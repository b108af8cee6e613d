import {existsSync} from 'node:fs';
import {mkdir, readFile, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {reasonOf, systemCode} from '../../errors.ts';

/** Where the package istio-sidecar and Istio's documents have their files. Below `root`, which is `/` but in tests. */
const places = {
	'cluster.env': ['/var/lib/istio/envoy/cluster.env'],
	'mesh.yaml': ['/etc/istio/config/mesh', '/var/lib/istio/config/mesh'],
	'root-cert.pem': ['/etc/certs/root-cert.pem', '/var/run/secrets/istio/root-cert.pem'],
	'istio-token': ['/var/run/secrets/tokens/istio-token'],
} as const;
const sidecarEnv = '/var/lib/istio/envoy/sidecar.env';
const certificate = {chain: '/etc/certs/cert-chain.pem', key: '/etc/certs/key.pem'};

/** What of Istio's agent is on this machine. */
export interface IstioMachine {
	/** Files of a bundle by name: where each was found and what it holds. */
	readonly files: ReadonlyMap<string, {readonly path: string; readonly content: Buffer}>;
	/** The certificate that its agent was given last. */
	readonly certificate: {readonly chainPem: string; readonly keyPem: string} | undefined;
	/** Variables of sidecar.env, which no bundle has. */
	readonly furtherVariables: readonly string[];
}

/** @throws the system's error, for a file that is there and cannot be read */
export async function lookAtIstio(root = '/'): Promise<IstioMachine> {
	const files = new Map<string, {path: string; content: Buffer}>();
	for (const [name, paths] of Object.entries(places)) {
		for (const path of paths) {
			const content = await readOptional(join(root, path));
			// The package makes an empty file in place of the mesh configuration.
			if (content && content.length > 0 && !files.has(name)) files.set(name, {path: join(root, path), content});
		}
	}
	const [chain, key] = [
		await readOptional(join(root, certificate.chain)),
		await readOptional(join(root, certificate.key)),
	];
	const further = (await readOptional(join(root, sidecarEnv)))?.toString('utf8') ?? '';
	return {
		files,
		certificate: chain && key ? {chainPem: chain.toString('latin1'), keyPem: key.toString('latin1')} : undefined,
		furtherVariables: [...further.matchAll(/^[ \t]*(?:export[ \t]+)?([A-Z_][A-Z0-9_]*)=/gm)].map(([, name]) => name!),
	};
}

/** Writes what was found as a bundle; its hosts are in /etc/hosts, where Istio's documents have them put. */
export async function writeBundle({files}: IstioMachine, directory: string): Promise<void> {
	await mkdir(directory, {recursive: true, mode: 0o700});
	for (const [name, {content}] of files) await writeFile(join(directory, name), content, {mode: 0o600});
}

export const isIstioMachine = (root = '/'): boolean => existsSync(join(root, places['cluster.env'][0]));

async function readOptional(path: string): Promise<Buffer | undefined> {
	try {
		return await readFile(path);
	} catch (error) {
		if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return undefined;
		throw new Error(`read ${path}: ${reasonOf(error)}`, {cause: error});
	}
}
