import {fstatSync} from 'node:fs';

/**
 * Whether journald reads what is written there. The variable alone does not say so: programs hand it on to others whose
 * output goes elsewhere.
 * @param stream - JOURNAL_STREAM, `DEVICE:INODE`
 */
export function isJournal(fd: number, stream = process.env['JOURNAL_STREAM']): boolean {
	if (stream === undefined) return false;
	try {
		const {dev, ino} = fstatSync(fd, {bigint: true});
		return stream === `${dev}:${ino}`;
	} catch {
		return false; // Closed.
	}
}
