import {closeSync, fstatSync, openSync, readSync} from 'node:fs';
import {rename, stat} from 'node:fs/promises';
import {systemCode} from '../errors.ts';

const tailLines = 40;
const tailBytes = 32 * 1024;

/** Where Envoy's standard output and error go: what it says before it has opened its log, and back-traces. */
export function errorLogPath(logPath: string): string {
	return logPath.endsWith('.log') ? `${logPath.slice(0, -'.log'.length)}.err` : `${logPath}.err`;
}

/** The same of the one that was started before, where a unit starts the next by itself. */
export function lastErrorLogPath(logPath: string): string {
	return `${errorLogPath(logPath)}.1`;
}

/** The last lines of a file, oldest first; none when there is no such file. */
export function readTail(path: string): string[] {
	try {
		const fd = openSync(path, 'r');
		try {
			const {size} = fstatSync(fd);
			const start = Math.max(0, size - tailBytes);
			const buffer = Buffer.alloc(size - start);
			const length = readSync(fd, buffer, 0, buffer.length, start);
			const lines = buffer.toString('utf8', 0, length).split('\n');
			return (start > 0 ? lines.slice(1) : lines).filter(line => line !== '').slice(-tailLines);
		} finally {
			closeSync(fd);
		}
	} catch {
		// It is only shown to people, and its absence must not hide the failure it would explain.
		return [];
	}
}

/** Both files, the error file last as it holds the reason of an early end. */
export function readLogTail(logPath: string, errorPath = errorLogPath(logPath)): string[] {
	return [...readTail(logPath), ...readTail(errorPath)].slice(-tailLines);
}

/**
 * Moves the log to `.1` once it is larger than `maxBytes`, and has Envoy open a new one. One old file is kept.
 * @param reopen - tells Envoy, by SIGUSR1
 */
export async function rotateLog(path: string, maxBytes: number, reopen: () => void): Promise<boolean> {
	try {
		if ((await stat(path)).size <= maxBytes) return false;
		await rename(path, `${path}.1`);
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return false;
		throw error;
	}
	reopen();
	return true;
}
