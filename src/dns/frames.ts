/**
 * Messages over TCP: each behind its length in two bytes (RFC 1035, section 4.2.2). Pieces come as the network cuts
 * them, and what is not whole yet is never more than one message and what came with it.
 */
export class FrameReader {
	#rest: Buffer = Buffer.alloc(0);

	/** Whole messages; each is a copy of its own, so that none holds what it came with. */
	read(chunk: Buffer): Buffer[] {
		const messages: Buffer[] = [];
		let data = this.#rest.length > 0 ? Buffer.concat([this.#rest, chunk]) : chunk;
		while (data.length >= 2) {
			const end = 2 + data.readUInt16BE(0);
			if (data.length < end) break;
			messages.push(Buffer.from(data.subarray(2, end)));
			data = data.subarray(end);
		}
		this.#rest = Buffer.from(data);
		return messages;
	}

	/** Whether a message has begun and not ended. */
	get isPartial(): boolean {
		return this.#rest.length > 0;
	}
}

export function frame(message: Buffer): Buffer {
	const framed = Buffer.allocUnsafe(message.length + 2);
	framed.writeUInt16BE(message.length, 0);
	message.copy(framed, 2);
	return framed;
}
