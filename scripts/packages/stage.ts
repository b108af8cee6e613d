import {
	chmodSync,
	copyFileSync,
	cpSync,
	existsSync,
	linkSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	statSync,
	symlinkSync,
	writeFileSync,
} from 'node:fs';
import {dirname, join} from 'node:path';
import {gzipSync} from 'node:zlib';
import type {PackageDescription} from './describe.ts';
import {renderCompletion, renderManual} from './manual.ts';
import {buildSeconds, release} from './nfpm.ts';
import {dropCodeCaches} from './pack.ts';
import {type BundledPackage, bundledPackages} from './sbom.ts';

const library = '/usr/lib/onramp';

export interface AgentInput {
	readonly description: PackageDescription;
	/** Node's name of the processor. */
	readonly arch: string;
	/** Settings to be the machine's at first. */
	readonly configPath: string;
	/** Folder of an npm package of that processor. */
	readonly folderOf: (name: string) => string;
}

/** What differs by processor. */
export const nodePackage = (arch: string): string => `node-linux-${arch}`;
export const koffiPackage = (arch: string): string => `@koromix/koffi-linux-${arch}`;

/** Puts the files of the agent's package under `root` as they are to be installed. */
export function stageAgent(root: string, {description, arch, configPath, folderOf}: AgentInput): void {
	const place = (path: string): string => {
		mkdirSync(dirname(join(root, path)), {recursive: true});
		return join(root, path);
	};
	const copy = (from: string, to: string, mode = 0o644): void => {
		copyFileSync(from, place(to));
		chmodSync(join(root, to), mode);
	};
	const write = (to: string, content: string | Buffer): void => writeFileSync(place(to), content, {mode: 0o644});

	const node = folderOf(nodePackage(arch));
	copy(`${node}/bin/node`, `${library}/node`, 0o755);
	const launcher = readFileSync('dist/onramp.cjs', 'utf8').replace(/^#!.*/, `#!${library}/node`);
	write(`${library}/onramp.cjs`, launcher);
	chmodSync(join(root, `${library}/onramp.cjs`), 0o755);
	const pack = readFileSync('dist/onramp.pack');
	write(`${library}/onramp.pack`, arch === process.arch ? pack : dropCodeCaches(pack));
	stageKoffi(root, koffiPackage(arch), folderOf);
	mkdirSync(join(root, 'usr/bin'), {recursive: true});
	symlinkSync(`..${library.slice('/usr'.length)}/onramp.cjs`, join(root, 'usr/bin/onramp'));

	for (const unit of readdirSync('packaging/units')) copy(`packaging/units/${unit}`, `/usr/lib/systemd/system/${unit}`);
	copy('packaging/capture-drift', `${library}/capture-drift`, 0o755);
	copy('packaging/sysusers.conf', '/usr/lib/sysusers.d/onramp.conf');
	copy('packaging/tmpfiles.conf', '/usr/lib/tmpfiles.d/onramp.conf');
	copy(configPath, '/etc/onramp/onramp.yaml');
	copy('packaging/apparmor', '/etc/apparmor.d/onramp');
	for (const name of ['onramp.cil', 'onramp_permissive.cil'])
		copy(`packaging/selinux/${name}`, `/usr/share/selinux/packages/${name}`);
	for (const form of ['rules', 'pkla']) copy(`packaging/polkit.${form}`, `/usr/share/onramp/50-onramp-dns.${form}`);
	copy('packaging/sysctl.conf', '/usr/lib/sysctl.d/50-onramp.conf');

	write('/usr/share/man/man1/onramp.1.gz', gzip(renderManual()));
	write('/usr/share/bash-completion/completions/onramp', renderCompletion());
	write('/usr/share/doc/onramp/changelog.gz', gzip(readFileSync('CHANGELOG.md', 'utf8')));
	write('/usr/share/doc/onramp/changelog.Debian.gz', gzip(renderDebianChangelog(description)));
	write('/usr/share/doc/onramp/copyright', renderCopyright('onramp', 'Copyright 2026 the onramp authors', ofAgent));
	write('/usr/share/doc/onramp/licences.gz', gzip(renderLicences(arch, folderOf)));
	copy('docs/registration.yaml', '/usr/share/doc/onramp/registration.yaml');
	copy('packaging/lintian-overrides', '/usr/share/lintian/overrides/onramp');
}

/** A program that is at its place already is not copied again: it is 100 MB. */
export function stageEnvoy(root: string, description: PackageDescription, envoyPath: string): void {
	mkdirSync(join(root, library), {recursive: true});
	try {
		linkSync(envoyPath, join(root, library, 'envoy'));
	} catch {
		copyFileSync(envoyPath, join(root, library, 'envoy')); // Another file system.
	}
	const documents = join(root, 'usr/share/doc/onramp-envoy');
	mkdirSync(documents, {recursive: true});
	// The second is what Envoy's own NOTICE wants to be told of.
	const whose =
		'Copyright 2016-2026 the Envoy authors, https://www.envoyproxy.io\nCopyright (c) 2017 Lyft Inc.  All rights reserved.';
	writeFileSync(join(documents, 'copyright'), renderCopyright('Envoy', whose, ofEnvoy));
	writeFileSync(join(documents, 'licence.gz'), gzip(readFileSync('LICENSE', 'utf8')));
	writeFileSync(join(documents, 'changelog.Debian.gz'), gzip(renderDebianChangelog(description)));
	mkdirSync(join(root, 'usr/share/lintian/overrides'), {recursive: true});
	copyFileSync('packaging/lintian-overrides-envoy', join(root, 'usr/share/lintian/overrides/onramp-envoy'));
}

/** The one binding that cannot be bundled; the agent works without it, and is larger. */
function stageKoffi(root: string, binary: string, folderOf: (name: string) => string): void {
	const modules = join(root, library, 'node_modules');
	const parts = ['package.json', 'index.cjs', 'src/koffi'].map(path => [`node_modules/koffi/${path}`, `koffi/${path}`]);
	for (const [from, to] of [...parts, [folderOf(binary), binary]] as [string, string][]) {
		cpSync(from, join(modules, to), {
			recursive: true,
			// Its C++ sources and the builds for other systems are left out.
			filter: source => (statSync(source).isDirectory() ? !/\/musl_/.test(source) : isLoaded(source)),
		});
	}
	// As npm has it differs by processor.
	for (const name of readdirSync(modules, {recursive: true, encoding: 'utf8'}))
		if (name.endsWith('.node')) chmodSync(join(modules, name), 0o644);
}

/** Neither its sources nor what only its own build runs. */
const isLoaded = (path: string): boolean => /\.(cjs|js|json|node)$/.test(path) && !path.endsWith('/trampolines.cjs');

const gzip = (text: string): Buffer => {
	const bytes = gzipSync(text, {level: 9});
	bytes[9] = 255; // The operating system that made it says nothing about the content.
	return bytes;
};

/** Debian wants no text of a licence that every system has, and other systems want it: so it is in a file of its own. */
function renderCopyright(name: string, whose: string, more: string): string {
	return `${name}

${whose}
License: Apache-2.0

On Debian systems the text of the Apache License 2.0 is in
/usr/share/common-licenses/Apache-2.0, elsewhere in the compressed file beside
this one.

${more}
`;
}

const ofAgent = `What is bundled, and all licences in full, are in that file, too.`;
const ofEnvoy = `Envoy is linked with libraries of others, BoringSSL, Abseil and nghttp2 among
them. Its authors publish no file that holds the licences of all; libraries,
versions and the names of their licences are in the directory bazel/ of the
source of this version, https://github.com/envoyproxy/envoy`;

function renderDebianChangelog({name, version, maintainer}: PackageDescription): string {
	const date = new Date(buildSeconds() * 1000).toUTCString().replace('GMT', '+0000');
	return `${name} (${version}-${release}) unstable; urgency=medium

  * Built from source; what has changed is in CHANGELOG.md, here changelog.gz.

 -- ${maintainer}  ${date}
`;
}

/** Our licence, and in full those of all that is in the package; that of Node holds those of what it is built of. */
function renderLicences(arch: string, folderOf: (name: string) => string): string {
	const others = bundledPackages(arch).map(
		bundled => `${bundled.name} ${bundled.version} (${bundled.licence})\n\n${readLicence(bundled, folderOf)}`,
	);
	const line = `\n\n${'-'.repeat(80)}\n\n`;
	return [`onramp\n\n${readFileSync('LICENSE', 'utf8').trim()}`, ...others].join(line);
}

/** Parts without a text of their own → whose text is theirs, too. */
const licenceOwners: Readonly<Record<string, string>> = {
	'@koromix/koffi-linux-x64': 'koffi',
	'@koromix/koffi-linux-arm64': 'koffi',
};

function readLicence({name, path: installed}: BundledPackage, folderOf: (name: string) => string): string {
	const owner = licenceOwners[name];
	const folder = owner ? `node_modules/${owner}` : existsSync(installed) ? installed : folderOf(name);
	const file = readdirSync(folder).find(each => /^(licen[cs]e|copying)/i.test(each));
	if (!file) throw new Error(`${folder} has no text of its licence: it cannot be in a package`);
	return readFileSync(join(folder, file), 'utf8').trim();
}
