import {decodeName, skipName, type} from './message.ts';

/** One record as a person reads it. */
export interface ReadRecord {
	readonly name: string;
	readonly ttlSeconds: number;
	readonly type: string;
	readonly value: string;
}

const numbers: Readonly<Record<string, number>> = {
	A: 1,
	NS: 2,
	CNAME: 5,
	SOA: 6,
	PTR: 12,
	MX: 15,
	TXT: 16,
	AAAA: 28,
	SRV: 33,
	NAPTR: 35,
	DS: 43,
	DNSKEY: 48,
	SVCB: 64,
	HTTPS: 65,
	ANY: 255,
	CAA: 257,
};
const names = new Map(Object.entries(numbers).map(([name, number]) => [number, name]));

/** `AAAA`, or `TYPE28` for those without a name here (RFC 3597); undefined for what is neither. */
export function parseType(text: string): number | undefined {
	const upper = text.toUpperCase();
	const known = numbers[upper];
	if (known !== undefined) return known;
	const [, digits] = /^TYPE(\d{1,5})$/.exec(upper) ?? [];
	const number = Number(digits);
	return digits !== undefined && number > 0 && number < 65_536 ? number : undefined;
}

const codes = ['NOERROR', 'FORMERR', 'SERVFAIL', 'NXDOMAIN', 'NOTIMP', 'REFUSED'];
export const renderCode = (message: Buffer): string => {
	const code = message[3]! & 0x0f;
	return codes[code] ?? `RCODE${code}`;
};

/** The answer section; what is cut short or malformed ends it. */
export function readAnswers(message: Buffer): ReadRecord[] {
	const found: ReadRecord[] = [];
	let position = 12;
	for (let left = message.readUInt16BE(4); left > 0; left--) position = skipName(message, position) + 4;
	for (let left = message.readUInt16BE(6); left > 0 && position >= 12; left--) {
		const fixed = skipName(message, position);
		if (fixed < 0 || fixed + 10 > message.length) break;
		const number = message.readUInt16BE(fixed);
		const start = fixed + 10;
		const end = start + message.readUInt16BE(fixed + 8);
		if (end > message.length) break;
		found.push({
			name: readName(message, position),
			ttlSeconds: message.readUInt32BE(fixed + 4),
			type: names.get(number) ?? `TYPE${number}`,
			value: renderValue(message, number, start, end),
		});
		position = end;
	}
	return found;
}

function renderValue(message: Buffer, number: number, start: number, end: number): string {
	const data = message.subarray(start, end);
	if (number === type.a && data.length === 4) return data.join('.');
	if (number === type.aaaa && data.length === 16) return renderIpv6(data);
	if ([type.cname, type.ns, type.ptr].includes(number)) return readName(message, start);
	if (number === 15 && data.length > 2) return `${data.readUInt16BE(0)} ${readName(message, start + 2)}`;
	if (number === 33 && data.length > 6)
		return [0, 2, 4].map(at => data.readUInt16BE(at)).join(' ') + ` ${readName(message, start + 6)}`;
	if (number === type.txt) return readTexts(data);
	return data.toString('hex');
}

function readTexts(data: Buffer): string {
	const texts: string[] = [];
	for (let position = 0; position < data.length; position += 1 + data[position]!)
		texts.push(
			JSON.stringify(data.toString('latin1', position + 1, Math.min(data.length, position + 1 + data[position]!))),
		);
	return texts.join(' ');
}

/** The URL parser shortens zeros as RFC 5952 wants. */
function renderIpv6(data: Buffer): string {
	const groups = Array.from({length: 8}, (_, index) => data.readUInt16BE(index * 2).toString(16));
	return new URL(`http://[${groups.join(':')}]`).hostname.slice(1, -1);
}

/** Follows compression, backwards only, so that it ends. */
function readName(message: Buffer, start: number): string {
	let wire = '';
	let position = start;
	let before = start;
	for (;;) {
		const length = message[position];
		if (length === undefined || wire.length > 255) return '?';
		if (length === 0) return decodeName(`${wire}\0`);
		if (length < 0xc0) {
			wire += message.toString('latin1', position, position + 1 + length);
			position += 1 + length;
			continue;
		}
		const target = ((length & 0x3f) << 8) | (message[position + 1] ?? 0);
		if (target >= before) return '?';
		position = target;
		before = target;
	}
}
