import {constants} from 'node:fs';
import {open} from 'node:fs/promises';

/**
 * Reads a file that somebody else writes: not a FIFO that blocks for ever, not a device, not without a bound.
 * @throws the system's error; Error "it is not a regular file" or "it is larger than … bytes"
 */
export async function readSmallFile(path: string, maxBytes: number): Promise<Buffer> {
	// Without O_NONBLOCK, opening a FIFO would wait for a writer.
	const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
	try {
		if (!(await file.stat()).isFile()) throw new Error('it is not a regular file');
		const buffer = Buffer.alloc(maxBytes + 1);
		let length = 0;
		for (;;) {
			const {bytesRead} = await file.read(buffer, length, buffer.length - length);
			if (bytesRead === 0) return buffer.subarray(0, length);
			length += bytesRead;
			if (length > maxBytes) throw new Error(`it is larger than ${maxBytes} bytes`);
		}
	} finally {
		await file.close();
	}
}
