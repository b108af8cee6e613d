/**
 * Protobuf wire format, as far as the xDS envelopes need it: reading walks fields over the original buffer without
 * copying, writing appends to a growing list of chunks. Source: protobuf.dev "Encoding".
 *
 * Everything read here comes from the network, so every length is checked against the buffer and every malformed
 * input is a WireError, never an out-of-range read and never an endless loop.
 */
export class WireError extends Error {
	override readonly name = 'WireError';
}

export const varint = 0;
export const fixed64 = 1;
export const bytes = 2;
export const fixed32 = 5;

/**
 * A cursor over the fields of one message. `next()` moves to the next field; then `number`, `type` and the value
 * accessors tell about it. `start`..`end` is the field with its tag, for copying it verbatim.
 */
export class FieldReader {
	readonly buffer: Buffer;
	readonly #end: number;
	#position: number;
	/** Field number of the current field. */
	number = 0;
	/** Wire type of the current field. */
	type = 0;
	/** Offset of the current field's tag; before the first `next()`, of the message. */
	start = 0;
	/** Offset just past the current field. */
	end = 0;
	/** Of a `bytes` field: where its length begins; the length ends at `valueStart`. */
	lengthStart = 0;
	/** Of a `bytes` field: where the content begins; it ends at `end`. */
	valueStart = 0;
	#varint = 0;

	constructor(buffer: Buffer, start = 0, end = buffer.length) {
		this.buffer = buffer;
		this.start = start;
		this.end = start;
		this.#position = start;
		this.#end = end;
	}

	next(): boolean {
		if (this.#position >= this.#end) return false;
		this.start = this.#position;
		const tag = this.#readVarint();
		if (tag < 8 || tag > 0xffffffff) throw new WireError(`field number out of range at byte ${this.start}`);
		this.number = tag >>> 3;
		this.type = tag & 7;
		switch (this.type) {
			case bytes: {
				this.lengthStart = this.#position;
				const length = this.#readVarint();
				this.valueStart = this.#position;
				this.#skip(length);
				break;
			}
			case varint:
				this.valueStart = this.#position;
				this.#varint = this.#readVarint();
				break;
			case fixed64:
				this.valueStart = this.#position;
				this.#skip(8);
				break;
			case fixed32:
				this.valueStart = this.#position;
				this.#skip(4);
				break;
			default:
				// Groups (3, 4) are not used by any proto3 message.
				throw new WireError(`wire type ${this.type} at byte ${this.start}`);
		}
		this.end = this.#position;
		return true;
	}

	/** Where the message being read ends. */
	get messageEnd(): number {
		return this.#end;
	}

	/** Content of a `bytes` field, shared with the input buffer. */
	bytes(): Buffer {
		this.#expect(bytes);
		return this.buffer.subarray(this.valueStart, this.end);
	}

	/** Where the content of a `bytes` field lies in the buffer. */
	range(): [start: number, end: number] {
		this.#expect(bytes);
		return [this.valueStart, this.end];
	}

	string(): string {
		this.#expect(bytes);
		return this.buffer.toString('utf8', this.valueStart, this.end);
	}

	/** Reader over an embedded message. */
	message(): FieldReader {
		this.#expect(bytes);
		return new FieldReader(this.buffer, this.valueStart, this.end);
	}

	/** An unsigned varint; values above 2^53 lose precision, which no field read here has. */
	uint(): number {
		this.#expect(varint);
		return this.#varint;
	}

	/** An int32 or enum, with its sign. Read again from the bytes: a negative one has 64 bits, past what a number holds. */
	int32(): number {
		this.#expect(varint);
		let value = 0;
		for (let i = 0; i < 5 && this.valueStart + i < this.end; i++)
			value |= (this.buffer[this.valueStart + i]! & 0x7f) << (7 * i);
		return value;
	}

	bool(): boolean {
		return this.uint() !== 0;
	}

	/** The field as it stands, with its tag. */
	raw(): Buffer {
		return this.buffer.subarray(this.start, this.end);
	}

	#expect(type: number): void {
		if (this.type !== type) throw new WireError(`field ${this.number} has wire type ${this.type}, not ${type}`);
	}

	#skip(length: number): void {
		if (length > this.#end - this.#position)
			throw new WireError(`field ${this.number} runs past the end of the message`);
		this.#position += length;
	}

	#readVarint(): number {
		const {buffer} = this;
		const end = this.#end;
		let position = this.#position;
		// One byte is the rule for tags and short lengths, and much the fastest this way.
		if (position < end && buffer[position]! < 0x80) {
			this.#position = position + 1;
			return buffer[position]!;
		}
		let value = 0;
		let scale = 1;
		for (let i = 0; i < 10; i++) {
			if (position >= end) throw new WireError('truncated varint');
			const byte = buffer[position++]!;
			value += (byte & 0x7f) * scale;
			if (byte < 0x80) {
				this.#position = position;
				return value;
			}
			scale *= 128;
		}
		throw new WireError('varint longer than ten bytes');
	}
}

/** Builds one message. Chunks handed in are not copied until `finish`. */
export class FieldWriter {
	readonly #chunks: Uint8Array[] = [];
	#length = 0;

	/** Appends bytes that already are encoded fields. */
	raw(encoded: Uint8Array): this {
		this.#chunks.push(encoded);
		this.#length += encoded.length;
		return this;
	}

	bytes(number: number, value: Uint8Array): this {
		this.raw(encodeVarints(number * 8 + bytes, value.length));
		return this.raw(value);
	}

	/** Writes nothing for '', as proto3 does. */
	string(number: number, value: string): this {
		return value === '' ? this : this.bytes(number, Buffer.from(value, 'utf8'));
	}

	strings(number: number, values: Iterable<string>): this {
		// One chunk for all: there may be thousands, and each chunk is an object.
		const all = [...values];
		if (all.length === 0) return this;
		const out = new MessageBuffer(all.reduce((sum, value) => sum + value.length + 8, 0));
		for (const value of all) out.text(number, value);
		return this.raw(out.finish());
	}

	/** Writes nothing for 0, as proto3 does. */
	uint(number: number, value: number): this {
		return value === 0 ? this : this.raw(encodeVarints(number * 8 + varint, value));
	}

	bool(number: number, value: boolean): this {
		return this.uint(number, value ? 1 : 0);
	}

	message(number: number, write: (writer: FieldWriter) => void): this {
		const inner = new FieldWriter();
		write(inner);
		return this.append(number, inner);
	}

	/** Embeds another writer's content without joining it first. */
	append(number: number, inner: FieldWriter): this {
		this.raw(encodeVarints(number * 8 + bytes, inner.#length));
		for (const chunk of inner.#chunks) this.#chunks.push(chunk);
		this.#length += inner.#length;
		return this;
	}

	get length(): number {
		return this.#length;
	}

	finish(): Buffer {
		return Buffer.concat(this.#chunks, this.#length);
	}
}

/** Builds one large message in one buffer, for when its parts are many and their sizes are known beforehand. */
export class MessageBuffer {
	#buffer: Buffer;
	#length = 0;

	/** @param expectedBytes - the room to begin with; more is made when it is not enough */
	constructor(expectedBytes: number) {
		this.#buffer = Buffer.allocUnsafeSlow(Math.max(expectedBytes, 64));
	}

	get length(): number {
		return this.#length;
	}

	/** Tag and length of a `bytes` field; the caller appends the content. */
	head(number: number, length: number): this {
		this.#reserve(20);
		this.#length = writeVarint(this.#buffer, number * 8 + bytes, this.#length);
		this.#length = writeVarint(this.#buffer, length, this.#length);
		return this;
	}

	bytes(number: number, value: Uint8Array): this {
		this.head(number, value.length);
		this.#reserve(value.length);
		this.#buffer.set(value, this.#length);
		this.#length += value.length;
		return this;
	}

	/** @param length - of the text in UTF-8, if it is known */
	text(number: number, value: string, length = Buffer.byteLength(value)): this {
		this.head(number, length);
		this.#reserve(length);
		this.#length += this.#buffer.write(value, this.#length, 'utf8');
		return this;
	}

	finish(): Buffer {
		return this.#buffer.subarray(0, this.#length);
	}

	#reserve(size: number): void {
		const needed = this.#length + size;
		if (needed <= this.#buffer.length) return;
		const larger = Buffer.allocUnsafeSlow(Math.max(needed, this.#buffer.length * 2));
		this.#buffer.copy(larger, 0, 0, this.#length);
		this.#buffer = larger;
	}
}

/** Bytes that a `bytes` field with a number below 16 takes for this much content. */
export const sizeOfBytes = (length: number): number => 1 + varintSize(length) + length;

/** Bytes a varint of this value takes. */
export function varintSize(value: number): number {
	let size = 1;
	for (let rest = value; rest >= 0x80; rest = Math.floor(rest / 128)) size++;
	return size;
}

/** Writes a varint into `target` and returns the position after it. */
export function writeVarint(target: Buffer, value: number, position: number): number {
	let rest = value;
	let at = position;
	while (rest >= 0x80) {
		target[at++] = (rest % 128) | 0x80;
		rest = Math.floor(rest / 128);
	}
	target[at++] = rest;
	return at;
}

function encodeVarints(first: number, second: number): Buffer {
	const out = Buffer.allocUnsafe(varintSize(first) + varintSize(second));
	writeVarint(out, second, writeVarint(out, first, 0));
	return out;
}
