/**
 * DNS messages (RFC 1035, EDNS RFC 6891), as far as a server needs them that answers from encoded records and passes
 * everything else on as it came. Every message is from somebody we do not know: each offset is checked, names are
 * bounded, nothing is followed backwards, and what cannot be read is refused with a code, never thrown.
 */
export const type = {
	a: 1,
	ns: 2,
	cname: 5,
	soa: 6,
	ptr: 12,
	txt: 16,
	aaaa: 28,
	opt: 41,
	ixfr: 251,
	axfr: 252,
	any: 255,
};
export const classIn = 1;
export const classAny = 255;

export const rcode = {noError: 0, formErr: 1, servFail: 2, nxDomain: 3, notImp: 4, refused: 5, badVersion: 16};

/** Extended DNS errors (RFC 8914). */
export const extendedError = {other: 0, notReady: 14, notSupported: 21, noReachableAuthority: 22};

export const headerLength = 12;
/** A name on the wire, with its lengths and the root (RFC 1035, section 2.3.4). */
export const longestName = 255;
const longestLabel = 63;
/** What a client takes over UDP without EDNS. */
export const smallestUdpSize = 512;
/** What we say we take over UDP: fits one IPv6 packet of 1,280 bytes, as DNS flag day 2020 has it. */
export const ownUdpSize = 1232;
export const largestMessage = 65_535;

export interface Query {
	readonly message: Buffer;
	/** The first label's length byte is at 12; this is after the root's. */
	readonly nameEnd: number;
	readonly questionEnd: number;
	readonly type: number;
	readonly class: number;
	/** The name as on the wire, in lower case, one character a byte. */
	readonly key: string;
	/** What the client takes over UDP, at least 512. */
	readonly udpSize: number;
	readonly hasEdns: boolean;
	readonly ednsVersion: number;
	readonly isDnssecWanted: boolean;
}

/**
 * Reads the header, the question and EDNS of a query.
 * @returns undefined for what must not be answered (no query, or too short to be one); a response code for what is refused
 */
export function parseQuery(message: Buffer): Query | number | undefined {
	const {length} = message;
	if (length < headerLength || (message[2]! & 0x80) !== 0) return undefined;
	if (message[4] !== 0 || message[5] !== 1) return rcode.formErr;
	let position = headerLength;
	let hasUpper = false;
	for (;;) {
		const labelLength = message[position];
		if (labelLength === undefined || labelLength > longestLabel) return rcode.formErr;
		position++;
		if (labelLength === 0) break;
		const labelEnd = position + labelLength;
		if (labelEnd >= length || labelEnd - headerLength >= longestName) return rcode.formErr;
		for (; position < labelEnd; position++) {
			const byte = message[position]!;
			if (byte >= 0x41 && byte <= 0x5a) hasUpper = true;
		}
	}
	const questionEnd = position + 4;
	if (questionEnd > length) return rcode.formErr;
	const name = message.toString('latin1', headerLength, position);
	// Lengths are below "A", so they are left alone.
	const key = hasUpper ? name.toLowerCase() : name;
	const edns = readEdns(message, questionEnd);
	if (typeof edns === 'number') return edns;
	return {
		message,
		nameEnd: position,
		questionEnd,
		type: (message[position]! << 8) | message[position + 1]!,
		class: (message[position + 2]! << 8) | message[position + 3]!,
		key,
		...(edns ?? noEdns),
	};
}

type Edns = Pick<Query, 'udpSize' | 'hasEdns' | 'ednsVersion' | 'isDnssecWanted'>;
const noEdns: Edns = {udpSize: smallestUdpSize, hasEdns: false, ednsVersion: 0, isDnssecWanted: false};

/** More records than this in a query is nobody's resolver. */
const mostRecords = 16;

/** Finds the OPT record: among the additional ones, which are last. @returns a response code for what cannot be read */
function readEdns(message: Buffer, questionEnd: number): Edns | number | undefined {
	const additional = (message[10]! << 8) | message[11]!;
	const others = ((message[6]! << 8) | message[7]!) + ((message[8]! << 8) | message[9]!);
	const records = additional + others;
	if (records === 0) return undefined;
	if (records > mostRecords) return rcode.formErr;
	let position = questionEnd;
	let found: Edns | undefined;
	for (let index = 0; index < records; index++) {
		const owner = position;
		position = skipName(message, position);
		const fixedEnd = position + 10;
		if (position < 0 || fixedEnd > message.length) return rcode.formErr;
		const end = fixedEnd + ((message[position + 8]! << 8) | message[position + 9]!);
		if (end > message.length) return rcode.formErr;
		if (index >= others && message[position] === 0 && message[position + 1] === type.opt) {
			// One, owned by the root (RFC 6891, section 6.1.1).
			if (found || message[owner] !== 0) return rcode.formErr;
			found = {
				udpSize: Math.max(smallestUdpSize, (message[position + 2]! << 8) | message[position + 3]!),
				hasEdns: true,
				ednsVersion: message[position + 5]!,
				isDnssecWanted: (message[position + 6]! & 0x80) !== 0,
			};
		}
		position = end;
	}
	return found;
}

/** @returns the position after a name, compressed or not; -1 if it runs past the end or is too long */
export function skipName(message: Buffer, start: number): number {
	let position = start;
	for (;;) {
		const labelLength = message[position];
		if (labelLength === undefined) return -1;
		if (labelLength >= 0xc0) return position + 2 <= message.length ? position + 2 : -1;
		if (labelLength > longestLabel || position - start >= longestName) return -1;
		position += labelLength + 1;
		if (labelLength === 0) return position;
	}
}

/** `a.example` or `a.example.` → its form on the wire, in lower case; undefined for what is no name. */
export function encodeName(name: string): string | undefined {
	const end = name.endsWith('.') ? name.length - 1 : name.length;
	if (end === 0) return name === '.' ? '\0' : undefined;
	let wire = '';
	let hasUpper = false;
	for (let start = 0; start <= end; ) {
		let position = start;
		for (; position < end; position++) {
			const char = name.charCodeAt(position);
			if (char === 0x2e) break;
			if (char <= 0x20 || char > 0x7e) return undefined;
			if (char >= 0x41 && char <= 0x5a) hasUpper = true;
		}
		if (position === start || position - start > longestLabel) return undefined;
		wire += String.fromCharCode(position - start) + name.slice(start, position);
		start = position + 1;
	}
	if (wire.length >= longestName) return undefined;
	return `${hasUpper ? wire.toLowerCase() : wire}\0`;
}

/** The form on the wire → `a.example`; `.` for the root. What is not printable is written as `\ddd` (RFC 1035, section 5.1). */
export function decodeName(wire: string): string {
	const labels: string[] = [];
	for (let position = 0; position < wire.length && wire.charCodeAt(position) > 0; ) {
		const end = position + 1 + wire.charCodeAt(position);
		labels.push(
			wire
				.slice(position + 1, end)
				.replace(/[^\x21-\x7e]|[.\\]/g, char => `\\${char.charCodeAt(0).toString().padStart(3, '0')}`),
		);
		position = end;
	}
	return labels.length === 0 ? '.' : labels.join('.');
}

/** A query for one name, with EDNS. */
export function renderQuery(id: number, name: string, queryType: number): Buffer {
	const message = Buffer.alloc(headerLength + name.length + 4 + optLength);
	message.writeUInt16BE(id, 0);
	message[2] = 0x01; // recursion desired
	message[5] = 1;
	message[11] = 1;
	message.write(name, headerLength, 'latin1');
	message.writeUInt16BE(queryType, headerLength + name.length);
	message.writeUInt16BE(classIn, headerLength + name.length + 2);
	writeOpt(message, headerLength + name.length + 4, 0, false);
	return message;
}

export const optLength = 11;

/** An OPT record without options. */
export function writeOpt(target: Buffer, start: number, highRcode: number, isDnssecWanted: boolean): void {
	target.fill(0, start, start + optLength);
	target[start + 2] = type.opt;
	target.writeUInt16BE(ownUdpSize, start + 3);
	target[start + 5] = highRcode;
	if (isDnssecWanted) target[start + 7] = 0x80;
}

/** Whether a message answers this question: the same name in any case, type and class, nothing else asked. */
export function isAnswerTo(answer: Buffer, question: Buffer, questionEnd: number): boolean {
	if (answer.length < headerLength || (answer[2]! & 0x80) === 0) return false;
	const count = (answer[4]! << 8) | answer[5]!;
	// Servers that could not even read the question leave it out.
	if (count === 0) return isFailure(answer[3]! & 0x0f);
	if (count !== 1 || answer.length < questionEnd) return false;
	for (let position = headerLength; position < questionEnd; position++) {
		const left = answer[position]!;
		const right = question[position]!;
		if (left !== right && lower(left) !== lower(right)) return false;
	}
	return true;
}

const lower = (byte: number): number => (byte >= 0x41 && byte <= 0x5a ? byte + 32 : byte);

/** Another server may know better. */
export const isFailure = (code: number): boolean =>
	code === rcode.servFail || code === rcode.notImp || code === rcode.refused || code === rcode.formErr;
