import {execFile} from 'node:child_process';
import {lstatSync, mkdirSync, readdirSync, readlinkSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {promisify} from 'node:util';
import {compressDeb} from './compress-deb.ts';
import type {PackageDescription} from './describe.ts';

export interface PackageJob {
	readonly description: PackageDescription;
	readonly format: 'deb' | 'rpm';
	/** Node's name of the processor. */
	readonly arch: string;
	/** Holds the files as they are to be installed. */
	readonly root: string;
	readonly out: string;
	readonly isFast: boolean;
}

/** Of the packaging, with the same program. */
export const release = '1';

const architectures: Readonly<Record<string, string>> = {x64: 'amd64', arm64: 'arm64'};

/** Makes one package and returns its path. The same files and the same SOURCE_DATE_EPOCH give the same bytes. */
export async function runNfpm(
	nfpm: string,
	{description, format, arch, root, out, isFast}: PackageJob,
): Promise<string> {
	const {name, version, maintainer, homepage, summary, text, depends, recommends, configFiles, scripts} = description;
	const mtime = new Date(buildSeconds() * 1000).toISOString();
	const folder = `${root}-${format}`;
	mkdirSync(folder, {recursive: true});
	const scriptPaths = Object.entries(scripts[format]).map(([moment, content]) => {
		const path = join(folder, moment);
		writeFileSync(path, content, {mode: 0o755});
		return [moment, path] as const;
	});
	const isRpm = format === 'rpm';
	const contents = listFiles(root).flatMap(path => {
		if (isRpm && /\/lintian\/|\.Debian\./.test(path)) return [];
		const source = join(root, path);
		const status = lstatSync(source);
		const info = {mode: status.mode & 0o7777, owner: 'root', group: 'root', mtime};
		if (status.isSymbolicLink()) return {src: readlinkSync(source), dst: path, type: 'symlink', file_info: {mtime}};
		const type = configFiles.includes(path)
			? 'config|noreplace'
			: isRpm && /^\/usr\/share\/(doc|man)\//.test(path)
				? 'doc'
				: undefined;
		return {src: source, dst: path, ...(type && {type}), file_info: info};
	});
	const ownership = {mode: 0o755, owner: 'root', group: 'root', mtime};
	const directories = isRpm
		? listOwnDirectories(contents.map(({dst}) => dst)).map(dst => ({dst, type: 'dir', file_info: ownership}))
		: [];
	const changelogPath = join(folder, 'changelog.yaml');
	const changes = [{note: 'Built from source; what has changed is in changelog.gz'}];
	writeFileSync(
		changelogPath,
		JSON.stringify([{semver: `${version}-${release}`, date: mtime, packager: maintainer, changes}]),
	);
	const config = {
		name,
		version,
		release,
		arch: architectures[arch],
		platform: 'linux',
		section: 'net',
		priority: 'optional',
		maintainer,
		...(homepage === undefined ? {} : {homepage}),
		// Debian's summary is no sentence.
		description: `${isRpm ? '' : `${summary[0]!.toLowerCase()}${summary.slice(1)}\n`}${text}`,
		...(isRpm ? {changelog: changelogPath} : {}),
		license: 'Apache-2.0',
		mtime,
		depends: depends[format],
		recommends: recommends[format],
		contents: [...contents, ...directories],
		scripts: Object.fromEntries(scriptPaths),
		deb: {compression: 'none'},
		rpm: {
			compression: isFast ? 'zstd:1' : 'zstd:19',
			summary,
			group: 'System Environment/Daemons',
			buildhost: 'localhost',
		},
	};
	const configPath = join(folder, 'nfpm.json');
	writeFileSync(configPath, JSON.stringify(config, undefined, '\t'));
	const args = ['package', '--config', configPath, '--packager', format, '--target', out];
	const {stdout} = await promisify(execFile)(nfpm, args, {
		env: {...process.env, SOURCE_DATE_EPOCH: String(buildSeconds())},
	});
	const [, path] = /created package: (.+)/.exec(stdout) ?? [];
	if (path === undefined) throw new Error(`nfpm made no package: ${stdout}`);
	if (format === 'deb' && !isFast) compressDeb(path);
	return path;
}

/** SOURCE_DATE_EPOCH, as reproducible-builds.org has it; a fixed day where it is not set. */
export function buildSeconds(): number {
	return Number(process.env['SOURCE_DATE_EPOCH'] ?? Date.UTC(2026, 0, 1) / 1000);
}

/**
 * Directories that rpm has to be told of, or they are left behind: ours, and those of others which a system need not have.
 * That of the settings is made by tmpfiles.d for a user whom rpm does not know yet.
 */
function listOwnDirectories(paths: readonly string[]): string[] {
	const all = paths.flatMap(path => [...path.matchAll(/\//g)].map(({index}) => path.slice(0, index)));
	return [...new Set(all)]
		.filter(path => /^\/(usr\/.*\/onramp(-envoy)?(\/|$)|usr\/share\/selinux|etc\/apparmor\.d$)/.test(path))
		.toSorted();
}

/** Absolute paths of files and links, as they will be installed. */
function listFiles(root: string): string[] {
	return readdirSync(root, {recursive: true, withFileTypes: true})
		.filter(entry => !entry.isDirectory())
		.map(entry => join(entry.parentPath, entry.name).slice(root.length))
		.toSorted();
}
