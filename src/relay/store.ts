/** A block of memory with resources in it. It goes when the last of them does, and so does all that it holds. */
export interface Slab {
	readonly bytes: Buffer;
	/** Bytes of it that a resource still uses. */
	liveBytes: number;
	/** Of an answer that is kept as it came, and adds resources only: what these took at first. */
	answerBytes?: number;
}

/** Where the content of a resource is. Moved when its slab is mostly empty; the content never changes. */
export interface Place {
	slab: Slab;
	start: number;
	end: number;
}

const slabBytes = 256 * 1024;
/** One this large has a slab of its own, so that replacing it leaves no hole. */
const largeBytes = 32 * 1024;
/** A message is kept as it is only from here on: smaller ones may be slices of a pool, and all of it would stay. */
const adoptableBytes = 64 * 1024;
/** Holes worth a walk over all resources. */
const tolerableHoleBytes = 1024 * 1024;

/**
 * The bytes of all resources, in few large blocks: a Buffer of its own for each would cost more than what most of
 * them hold, in memory and in the collector's work.
 */
export class Store {
	#open: Slab | undefined;
	#openUsed = 0;
	#heldBytes = 0;
	#liveBytes = 0;

	/** Bytes that resources use. */
	get liveBytes(): number {
		return this.#liveBytes;
	}

	/** Bytes that are kept for them, holes included. */
	get heldBytes(): number {
		return this.#heldBytes;
	}

	/**
	 * Keeps a message of which most is new as it is; otherwise undefined, as the rest of it would stay with the few
	 * resources that are wanted.
	 */
	adopt(message: Buffer, wantedBytes: number): Slab | undefined {
		if (message.length < adoptableBytes || wantedBytes * 2 < message.length) return undefined;
		this.#heldBytes += message.length;
		return {bytes: message, liveBytes: 0};
	}

	/** Counts a resource in that lies in an adopted message. */
	use(slab: Slab, start: number, end: number): Place {
		slab.liveBytes += end - start;
		this.#liveBytes += end - start;
		return {slab, start, end};
	}

	/** Copies a resource in. */
	put(source: Buffer, from: number, to: number): Place {
		const size = to - from;
		const [slab, start] = this.#room(size);
		source.copy(slab.bytes, start, from, to);
		return this.use(slab, start, start + size);
	}

	free({slab, start, end}: Place): void {
		slab.liveBytes -= end - start;
		this.#liveBytes -= end - start;
		if (slab.liveBytes === 0 && slab !== this.#open) this.#heldBytes -= slab.bytes.length;
	}

	/** Whether the holes have become worth a {@link compact}. */
	get isWasteful(): boolean {
		return this.#heldBytes - this.#liveBytes > Math.max(tolerableHoleBytes, this.#liveBytes / 2);
	}

	/** Moves what lies in mostly empty slabs together. @param places - of everything that is held */
	compact(places: Iterable<Place>): void {
		for (const place of places) {
			const {slab, start, end} = place;
			if (slab === this.#open || slab.liveBytes * 2 > slab.bytes.length) continue;
			const moved = this.put(slab.bytes, start, end);
			this.free(place);
			place.slab = moved.slab;
			place.start = moved.start;
			place.end = moved.end;
		}
	}

	#room(size: number): [Slab, number] {
		if (size >= largeBytes) return [this.#create(size), 0];
		if (!this.#open || this.#openUsed + size > this.#open.bytes.length) {
			const full = this.#open;
			this.#open = this.#create(slabBytes);
			this.#openUsed = 0;
			if (full?.liveBytes === 0) this.#heldBytes -= full.bytes.length;
		}
		const start = this.#openUsed;
		this.#openUsed += size;
		return [this.#open, start];
	}

	#create(size: number): Slab {
		this.#heldBytes += size;
		return {bytes: Buffer.allocUnsafeSlow(size), liveBytes: 0};
	}
}
