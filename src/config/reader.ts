import {accessSync, closeSync, constants, fstatSync, openSync, readSync, statSync} from 'node:fs';
import {systemCode} from '../errors.ts';

/** What the room asks of a file system; handed in so that tests need no disk and `parseConfig` none at all. */
export interface FileReader {
	/**
	 * The content, or undefined when there is no such file. At most `maxBytes + 1` bytes are read; more than
	 * `maxBytes` back means that the file is too large.
	 * @throws Error when it exists but cannot be read, or is not a regular file
	 */
	read(path: string, maxBytes: number): Uint8Array | undefined;
	/** What is there, following links; undefined when nothing is. @throws Error when that cannot be told */
	kind(path: string): 'file' | 'directory' | 'other' | undefined;
	/** Whether this process may do that. False when nothing is there. */
	can(path: string, access: 'read' | 'write' | 'execute'): boolean;
}

const modes = {read: constants.R_OK, write: constants.W_OK, execute: constants.X_OK};

export const diskReader: FileReader = {
	read: (path, maxBytes) =>
		absentAsUndefined(() => {
			// Not blocking: a FIFO in the place of a bundle file must not hang the start.
			const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
			try {
				if (!fstatSync(file).isFile()) throw new Error('not a regular file');
				return readUpTo(file, maxBytes + 1);
			} finally {
				closeSync(file);
			}
		}),
	kind: path =>
		absentAsUndefined(() => {
			const stat = statSync(path);
			if (stat.isFile()) return 'file';
			return stat.isDirectory() ? 'directory' : 'other';
		}),
	can: (path, access) => {
		try {
			accessSync(path, modes[access]);
			return true;
		} catch {
			// The question is yes or no; the caller asks `kind` when absence matters.
			return false;
		}
	},
};

function readUpTo(file: number, maxBytes: number): Uint8Array {
	const size = Math.min(fstatSync(file).size + 1, maxBytes);
	let buffer = Buffer.alloc(Math.max(size, 1));
	let length = 0;
	for (;;) {
		const count = readSync(file, buffer, length, buffer.length - length, null);
		length += count;
		if (count === 0 || length >= maxBytes) return buffer.subarray(0, length);
		// Files that report size 0 (procfs) or grow while read.
		if (length === buffer.length) buffer = Buffer.concat([buffer, Buffer.alloc(Math.min(65_536, maxBytes - length))]);
	}
}

function absentAsUndefined<T>(look: () => T): T | undefined {
	try {
		return look();
	} catch (error) {
		const code = systemCode(error);
		if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
		throw error;
	}
}
