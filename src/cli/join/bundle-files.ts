import {chmod, chown, mkdir, rename, rm, stat} from 'node:fs/promises';
import {dirname, join} from 'node:path';
import {diskReader} from '../../config/index.ts';
import {AgentError, reasonOf, systemCode} from '../../errors.ts';
import {syncDirectory, temporaryName, writeNewFile} from '../../lifecycle/atomic-file.ts';

/** One file that would be different after the installation. */
export interface FileChange {
	readonly path: string;
	/** What it will hold; undefined takes it away, and `same` mends only mode and group. */
	readonly content: Buffer | 'same' | undefined;
}

/** The token last: it is what makes a waiting agent try again. */
export const bundleFiles = ['cluster.env', 'mesh.yaml', 'root-cert.pem', 'hosts', 'istio-token'] as const;

/** Read by the agent's group, written by whoever joins, nothing for others: the token is a credential. */
const fileMode = 0o640;
const directoryMode = 0o750;

/** What it takes to have the bundle of one directory in another; empty when it is there already. @throws AgentError `config.unreadable` */
export async function planInstall(source: string, target: string): Promise<FileChange[]> {
	try {
		const gid = await groupFor(target);
		const changes: FileChange[] = [];
		for (const name of bundleFiles) {
			const path = join(target, name);
			const content = readOptional(join(source, name));
			const present = readOptional(path);
			if (content === undefined ? present === undefined : present?.equals(content)) {
				if (content && !(await isAsItShouldBe(path, gid))) changes.push({path, content: 'same'});
			} else changes.push({path, content});
		}
		return changes;
	} catch (cause) {
		throw cannotInstall(target, cause);
	}
}

/** Carries out the plan, each file whole or not at all. @throws AgentError `config.unreadable` */
export async function install(target: string, changes: readonly FileChange[]): Promise<void> {
	if (changes.length === 0) return;
	try {
		await mkdir(target, {recursive: true, mode: directoryMode});
		const gid = await groupFor(target);
		const directory = await stat(target);
		// Whatever the umask of who joins.
		if ((directory.mode & 0o057) !== 0o050) await chmod(target, directoryMode);
		if (directory.gid !== gid) await chown(target, -1, gid);
		for (const {path, content} of changes) {
			if (content === undefined) await rm(path, {force: true});
			else if (content === 'same') await mend(path, gid);
			else await replaceFile(path, content, fileMode, gid);
		}
		for (const {path, content} of changes) {
			if (content instanceof Buffer && !readOptional(path)?.equals(content))
				throw new Error(`${path} was changed meanwhile: is another join at work?`);
		}
	} catch (cause) {
		throw cannotInstall(target, cause);
	}
}

/**
 * Replaces a file for a group. The group is set before the file gets its name: an agent that looks at once must be
 * able to read it.
 */
export async function replaceFile(
	path: string,
	content: string | Uint8Array,
	mode: number,
	gid: number,
): Promise<void> {
	const temporary = join(dirname(path), temporaryName());
	try {
		await writeNewFile(temporary, content, 0o600);
		await chown(temporary, -1, gid);
		await chmod(temporary, mode);
		await rename(temporary, path);
	} catch (error) {
		await rm(temporary, {force: true}).catch(() => {}); // the first error is the one to tell
		throw error;
	}
	await syncDirectory(dirname(path));
}

/** The group that owns the folder above, which a package gives to the agent; ours when there is none yet. */
async function groupFor(target: string): Promise<number> {
	return stat(dirname(target)).then(
		({gid}) => gid,
		(error: unknown) => {
			if (systemCode(error) === 'ENOENT') return process.getgid!();
			throw error;
		},
	);
}

async function isAsItShouldBe(path: string, gid: number): Promise<boolean> {
	const file = await stat(path);
	return (file.mode & 0o777) === fileMode && file.gid === gid;
}

async function mend(path: string, gid: number): Promise<void> {
	await chown(path, -1, gid);
	await chmod(path, fileMode);
}

/** As much of a file as is looked at, and one byte more: a bundle with a larger one has been refused. */
const maxBytes = 2 ** 20;

/** Neither waits for ever at a FIFO nor reads without a bound. */
function readOptional(path: string): Buffer | undefined {
	const bytes = diskReader.read(path, maxBytes);
	return bytes && Buffer.from(bytes);
}

/** Whether two directories have the same token; false when that cannot be told. */
export function isSameToken(source: string, target: string): boolean {
	try {
		const [ours, theirs] = [source, target].map(directory => readOptional(join(directory, 'istio-token')));
		return ours !== undefined && theirs !== undefined && ours.equals(theirs);
	} catch {
		// Who checks the bundle says why.
		return false;
	}
}

const cannotInstall = (target: string, cause: unknown): AgentError =>
	new AgentError('config.unreadable', `install bundle into ${target}: ${reasonOf(cause)}`, {
		cause,
		hint: remedies[systemCode(cause) ?? ''] ?? 'run it as root, or name another place with --install-to',
	});

const remedies: Readonly<Record<string, string>> = {
	ENOSPC: 'make room on that file system, and join again',
	EDQUOT: 'make room on that file system, and join again',
	EROFS: 'that file system is read-only; name another place with --install-to',
};
