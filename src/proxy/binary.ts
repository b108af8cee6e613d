import {accessSync, closeSync, constants, openSync, readSync, statSync} from 'node:fs';
import {AgentError, reasonOf, systemCode} from '../errors.ts';

/** Older ones lack fields of the bootstrap and were never tried. */
const oldestVersion = [1, 36] as const;

/** ELF `e_machine` (elf.h). */
const machines: Readonly<Record<string, number>> = {x64: 62, arm64: 183};

/**
 * Checks that a file can be run here, without running it, and returns what tells it from another file at the same
 * path. A binary for another processor would otherwise be handed to /bin/sh by execvp, with a baffling message.
 * @throws AgentError `proxy.binary_missing`, `proxy.binary_unusable`
 */
export function checkBinary(path: string, arch: string = process.arch): string {
	try {
		const {ino, size, mtimeMs, dev} = statSync(path);
		accessSync(path, constants.X_OK);
		checkHead(path, arch);
		return `${dev}:${ino}:${size}:${mtimeMs}`;
	} catch (cause) {
		if (cause instanceof AgentError) throw cause;
		const code = systemCode(cause);
		if (code === 'ENOENT' || code === 'ENOTDIR') {
			throw new AgentError('proxy.binary_missing', `start envoy: there is no ${path}`, {
				cause,
				hint: 'install Envoy 1.36 or later there, or say where it is with proxy.binary',
			});
		}
		if (code === 'EACCES') {
			throw unusable(path, 'not executable by this user', {cause, hint: `chmod a+rx ${path}, and its folders`});
		}
		throw unusable(path, reasonOf(cause), {cause});
	}
}

function checkHead(path: string, arch: string): void {
	const head = Buffer.alloc(20);
	const fd = openSync(path, 'r');
	try {
		readSync(fd, head, 0, head.length, 0);
	} finally {
		closeSync(fd);
	}
	if (head.toString('latin1', 0, 2) === '#!') return; // A wrapper script.
	if (head.toString('latin1', 0, 4) !== '\x7fELF') {
		throw unusable(path, 'it is not a program', {hint: 'the download may be damaged; install Envoy again'});
	}
	if (machines[arch] !== undefined && head.readUInt16LE(18) !== machines[arch]) {
		throw unusable(path, 'it is built for another processor', {hint: `install the Envoy build for ${arch}`});
	}
}

/**
 * @param version - `1.40.0`
 * @throws AgentError `proxy.version_unsupported`
 */
export function checkVersion(path: string, version: string): void {
	const [major = 0, minor = 0] = version.split('.').map(Number);
	const [oldestMajor, oldestMinor] = oldestVersion;
	if (major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return;
	throw new AgentError('proxy.version_unsupported', `start envoy: ${path} is version ${version || 'unknown'}`, {
		hint: `install Envoy ${oldestVersion.join('.')} or later`,
	});
}

function unusable(path: string, why: string, options: {cause?: unknown; hint?: string}): AgentError {
	return new AgentError('proxy.binary_unusable', `start envoy: cannot run ${path}: ${why}`, options);
}
