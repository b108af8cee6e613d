import {randomBytes} from 'node:crypto';
import type {Stats} from 'node:fs';
import * as nodeFs from 'node:fs/promises';
import {dirname} from 'node:path';

/** What a file is made of: at once, or piece by piece. */
export type FileContent = string | Uint8Array | AsyncIterable<Uint8Array>;

/** What is needed of an open file; narrow, so that a test can stop the world between any two calls. */
export interface DurableFile {
	writeFile(data: FileContent): Promise<void>;
	sync(): Promise<void>;
	close(): Promise<void>;
}

/** The part of `node:fs/promises` that durable writing uses. */
export interface DurableFs {
	open(path: string, flags: string | number, mode?: number): Promise<DurableFile>;
	mkdir(path: string, options: {mode?: number; recursive?: boolean}): Promise<string | undefined>;
	rename(from: string, to: string): Promise<void>;
	link(existing: string, path: string): Promise<void>;
	symlink(target: string, path: string): Promise<void>;
	chmod(path: string, mode: number): Promise<void>;
	rm(path: string, options: {recursive?: boolean; force?: boolean}): Promise<void>;
	readdir(path: string): Promise<string[]>;
	stat(path: string): Promise<Stats>;
}

export const systemFs: DurableFs = nodeFs;

/** Files and links being made begin with this; whoever owns the directory may remove them at start. */
export const temporaryPrefix = '.onramp-tmp-';

/** A name beside the real ones that nobody else uses and that is never looked at as content. */
export function temporaryName(): string {
	return `${temporaryPrefix}${process.pid}-${randomBytes(6).toString('hex')}`;
}

/**
 * Creates a file, which must not exist (a symlink in its place counts), and returns when its bytes are on the disk.
 * @param isDurable - false for what means nothing after a power cut
 */
export async function writeNewFile(
	path: string,
	data: FileContent,
	mode: number,
	fs = systemFs,
	isDurable = true,
): Promise<void> {
	const file = await fs.open(path, 'wx', mode);
	try {
		await file.writeFile(data);
		if (isDurable) await file.sync();
	} finally {
		await file.close();
	}
}

/** Makes renames and new names in a directory survive a power cut. */
export async function syncDirectory(path: string, fs = systemFs): Promise<void> {
	const directory = await fs.open(path, 'r');
	try {
		await directory.sync();
	} finally {
		await directory.close();
	}
}

/**
 * Replaces a file so that readers and the next start see the old bytes or the new ones, never a mixture. The mode is
 * set whatever the umask says. A symlink at `path` is replaced, not followed.
 * @param isDurable - false for what means nothing after a power cut
 */
export async function writeFileAtomic(
	path: string,
	data: FileContent,
	mode: number,
	fs = systemFs,
	isDurable = true,
): Promise<void> {
	const temporary = `${dirname(path)}/${temporaryName()}`;
	try {
		await writeNewFile(temporary, data, mode, fs, isDurable);
		await fs.chmod(temporary, mode);
		await fs.rename(temporary, path);
	} catch (error) {
		await fs.rm(temporary, {force: true}).catch(() => {}); // the first error is the one to tell
		throw error;
	}
	if (isDurable) await syncDirectory(dirname(path), fs);
}

/** Points a symlink elsewhere in one step. */
export async function replaceSymlink(target: string, path: string, fs = systemFs): Promise<void> {
	const temporary = `${dirname(path)}/${temporaryName()}`;
	try {
		await fs.symlink(target, temporary);
		await fs.rename(temporary, path);
	} catch (error) {
		await fs.rm(temporary, {force: true}).catch(() => {}); // the first error is the one to tell
		throw error;
	}
	await syncDirectory(dirname(path), fs);
}
