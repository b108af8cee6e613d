/** The little of DER (X.690) that certificates and certificate requests need. */
export const tag = {
	boolean: 0x01,
	integer: 0x02,
	bitString: 0x03,
	octetString: 0x04,
	oid: 0x06,
	utf8: 0x0c,
	printable: 0x13,
	utcTime: 0x17,
	generalizedTime: 0x18,
	sequence: 0x30,
	set: 0x31,
} as const;

export interface DerNode {
	readonly tag: number;
	/** With tag and length. */
	readonly raw: Buffer;
	readonly content: Buffer;
}

export function encode(type: number, ...parts: Uint8Array[]): Buffer {
	const content = Buffer.concat(parts);
	if (content.length < 0x80) return Buffer.concat([Buffer.from([type, content.length]), content]);
	const length = Buffer.alloc(4);
	length.writeUInt32BE(content.length);
	const digits = length.subarray(length.findIndex(byte => byte !== 0));
	return Buffer.concat([Buffer.from([type, 0x80 | digits.length]), digits, content]);
}

export const sequence = (...parts: Uint8Array[]): Buffer => encode(tag.sequence, ...parts);
/** `[number]`, constructed. */
export const context = (number: number, ...parts: Uint8Array[]): Buffer => encode(0xa0 | number, ...parts);
/** @param unusedBits - of the last byte */
export const bitString = (value: Uint8Array, unusedBits = 0): Buffer =>
	encode(tag.bitString, Buffer.from([unusedBits]), value);

/** A positive integer; a leading zero keeps the top bit from reading as a sign. */
export function integer(value: Uint8Array): Buffer {
	return (value[0] ?? 0) & 0x80 ? encode(tag.integer, Buffer.from([0]), value) : encode(tag.integer, value);
}

export function oid(dotted: string): Buffer {
	const [first = 0, second = 0, ...rest] = dotted.split('.').map(Number);
	const bytes = [first * 40 + second];
	for (const arc of rest) {
		const digits = [arc & 0x7f];
		for (let left = arc >>> 7; left > 0; left >>>= 7) digits.unshift(0x80 | (left & 0x7f));
		bytes.push(...digits);
	}
	return encode(tag.oid, Buffer.from(bytes));
}

/** UTCTime until 2049, GeneralizedTime after, as RFC 5280 asks. */
export function time(at: Date): Buffer {
	const digits = `${at.toISOString().replace(/[-:T]/g, '').slice(0, 14)}Z`;
	if (at.getUTCFullYear() < 2050) return encode(tag.utcTime, Buffer.from(digits.slice(2), 'latin1'));
	return encode(tag.generalizedTime, Buffer.from(digits, 'latin1'));
}

/** @throws RangeError when the bytes are not whole DER nodes */
export function readAll(bytes: Buffer): DerNode[] {
	const nodes: DerNode[] = [];
	for (let offset = 0; offset < bytes.length; ) {
		let position = offset + 2;
		let length = bytes[offset + 1] ?? 0;
		if (length > 0x80) {
			const digits = length & 0x7f;
			if (digits > 4) throw new RangeError('length of more than four bytes');
			length = bytes.readUIntBE(position, digits);
			position += digits;
		}
		const end = position + length;
		if (end > bytes.length) throw new RangeError('truncated');
		nodes.push({tag: bytes[offset]!, raw: bytes.subarray(offset, end), content: bytes.subarray(position, end)});
		offset = end;
	}
	return nodes;
}

export function toPem(label: string, der: Uint8Array): string {
	const lines =
		Buffer.from(der)
			.toString('base64')
			.match(/.{1,64}/g) ?? [];
	return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}

/** @returns the first block of that label, or undefined */
export function fromPem(label: string, pem: string): Buffer | undefined {
	const body = new RegExp(`-----BEGIN ${label}-----([A-Za-z0-9+/=\\s]+)-----END ${label}-----`).exec(pem)?.[1];
	return body === undefined ? undefined : Buffer.from(body, 'base64');
}
