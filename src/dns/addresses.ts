import {isIP} from 'node:net';

/** An address as its 4 or 16 bytes; undefined for what is none. */
export function parseAddress(text: string): Uint8Array | undefined {
	const family = isIP(text);
	if (family === 4) return Uint8Array.from(text.split('.'), Number);
	if (family !== 6) return undefined;
	const bytes = new Uint8Array(16);
	// An IPv4 address may stand for the last two groups.
	const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
	const groups = dotted
		? `${dotted[1]}${(Number(dotted[2]) * 256 + Number(dotted[3])).toString(16)}:${(Number(dotted[4]) * 256 + Number(dotted[5])).toString(16)}`
		: text.replace(/%.*$/, '');
	const [head = '', tail] = groups.split('::');
	const parse = (part: string): number[] =>
		part === '' ? [] : part.split(':').map(group => Number.parseInt(group, 16));
	const [left, right] = [parse(head), parse(tail ?? '')];
	for (const [index, group] of left.entries()) write(bytes, index, group);
	for (const [index, group] of right.entries()) write(bytes, 8 - right.length + index, group);
	return bytes;
}

function write(bytes: Uint8Array, group: number, value: number): void {
	bytes[group * 2] = value >> 8;
	bytes[group * 2 + 1] = value & 0xff;
}

const reverse4 = '\x07in-addr\x04arpa\0';
const reverse6 = '\x03ip6\x04arpa\0';

/**
 * The address that a name of the reverse tree stands for, in hexadecimal; undefined for other names.
 * @param key - as on the wire, in lower case
 */
export function parseReverseName(key: string): string | undefined {
	const isIpv4 = key.endsWith(reverse4);
	if (!isIpv4 && !key.endsWith(reverse6)) return undefined;
	const wanted = isIpv4 ? 4 : 32;
	const end = key.length - (isIpv4 ? reverse4 : reverse6).length;
	const labels: string[] = [];
	for (let position = 0; position < end; ) {
		const next = position + 1 + key.charCodeAt(position);
		labels.push(key.slice(position + 1, next));
		position = next;
	}
	if (labels.length !== wanted) return undefined;
	const pattern = isIpv4 ? /^(?:0|[1-9]\d{0,2})$/ : /^[0-9a-f]$/;
	if (!labels.every(label => pattern.test(label) && (!isIpv4 || Number(label) < 256))) return undefined;
	return labels
		.reverse()
		.map(label => (isIpv4 ? Number(label).toString(16).padStart(2, '0') : label))
		.join('');
}

export const hexOf = (address: Uint8Array): string => Buffer.from(address).toString('hex');
