import type {FileFindings} from './problems.ts';

/** Larger than any file that istioctl writes by three orders of magnitude. */
export const maxFileBytes = 2 ** 20;

/**
 * Bytes of a configuration file → text with `\n` line ends and no byte order mark; undefined, with a problem
 * noted, when it is not text or too large.
 */
export function decodeText(bytes: Uint8Array, findings: FileFindings): string | undefined {
	const again = 'copy the file again, as text, from where it was made';
	if (bytes.length > maxFileBytes) {
		findings.problem(0, `is larger than ${maxFileBytes} bytes`, again);
		return undefined;
	}
	if (bytes.includes(0)) {
		findings.problem(lineAt(bytes, bytes.indexOf(0)), 'is binary: it holds a NUL byte', again);
		return undefined;
	}
	try {
		return new TextDecoder('utf-8', {fatal: true}).decode(bytes).replaceAll('\r\n', '\n');
	} catch {
		findings.problem(0, 'is binary: it is not UTF-8 text', again);
		return undefined;
	}
}

function lineAt(bytes: Uint8Array, offset: number): number {
	let line = 1;
	for (let index = 0; index < offset; index++) if (bytes[index] === 0x0a) line++;
	return line;
}
