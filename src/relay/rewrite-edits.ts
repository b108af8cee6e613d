import {type FieldReader, varintSize, writeVarint} from '../proto/wire.ts';

/** One change: the bytes `start`..`end` give way to `insert`, or to the varint `length`, or to nothing. */
interface Edit {
	readonly start: number;
	readonly end: number;
	readonly insert: Buffer | undefined;
	length: number;
}

/** No length to write; lengths are never negative. */
const none = -1;

/**
 * Changes to a message, noted in the order of its bytes while walking it and carried out in one copy at the end.
 * A message that holds a change gets its own length corrected, and so do all around it; every other byte stays.
 */
export class Edits {
	readonly #edits: Edit[] = [];
	#growth = 0;

	/** Takes the current field out, with its tag. */
	remove(field: FieldReader): void {
		this.#push(field.start, field.end, undefined);
	}

	/** Puts encoded fields before the current one. */
	insertBefore(field: FieldReader, encoded: Buffer): void {
		this.#push(field.start, field.start, encoded);
	}

	/** Walks the message in the current field; its length follows what changes inside. */
	within(field: FieldReader, walk: (inner: FieldReader) => void): void {
		const index = this.#edits.length;
		const growthBefore = this.#growth;
		const edit: Edit = {start: field.lengthStart, end: field.valueStart, insert: undefined, length: none};
		const lengthBefore = field.end - field.valueStart;
		const inner = field.message();
		// Holds the place: the length stands before the changes it depends on.
		this.#edits.push(edit);
		walk(inner);
		if (this.#edits.length === index + 1) {
			this.#edits.pop();
			return;
		}
		edit.length = lengthBefore + this.#growth - growthBefore;
		this.#growth += varintSize(edit.length) - (edit.end - edit.start);
	}

	/** Replaces the content of the current field. */
	replaceValue(field: FieldReader, value: Buffer): void {
		this.within(field, () => this.#push(field.valueStart, field.end, value));
	}

	/** The message with all changes; the very same buffer when there is none. */
	apply(buffer: Buffer): Buffer {
		if (this.#edits.length === 0) return buffer;
		const out = Buffer.allocUnsafe(buffer.length + this.#growth);
		let from = 0;
		let to = 0;
		for (const {start, end, insert, length} of this.#edits) {
			to += buffer.copy(out, to, from, start);
			if (length !== none) to = writeVarint(out, length, to);
			else if (insert) to += insert.copy(out, to);
			from = end;
		}
		buffer.copy(out, to, from);
		return out;
	}

	#push(start: number, end: number, insert: Buffer | undefined): void {
		this.#edits.push({start, end, insert, length: none});
		this.#growth += (insert?.length ?? 0) - (end - start);
	}
}
