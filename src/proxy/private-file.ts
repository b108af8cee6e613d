import {closeSync, mkdirSync, openSync, renameSync, rmSync, writeSync} from 'node:fs';
import {dirname} from 'node:path';

/**
 * Writes a file that is either the old or the new one, mode 0600. Not synced to disk: what is written this way means
 * nothing after a power cut. Synchronous, so that nothing can come between a spawn and its record.
 */
export function writePrivateFile(path: string, content: string): void {
	mkdirSync(dirname(path), {recursive: true, mode: 0o700});
	const temporary = `${path}.${process.pid}.new`;
	try {
		const fd = openSync(temporary, 'w', 0o600);
		try {
			writeSync(fd, content);
		} finally {
			closeSync(fd);
		}
		renameSync(temporary, path);
	} catch (error) {
		rmSync(temporary, {force: true});
		throw error;
	}
}
