/** Bytes that the index of a pack takes, blanks included. */
export const indexBytes = 4096;

/** Name → where its code begins, and the lengths of the code and of V8's cache of it that follows. */
export type PackIndex = Readonly<Record<string, readonly [at: number, length: number, cacheLength: number]>>;

export interface Part {
	/** As latin1. */
	readonly code: Buffer;
	/** Empty: compiled when it is loaded. */
	readonly cache: Buffer;
}

/** All parts in one file: an index, then each with its cache. Read by the launcher that scripts/build.ts writes. */
export function renderPack(parts: ReadonlyMap<string, Part>): Buffer {
	const index: Record<string, PackIndex[string]> = {};
	const chunks: Buffer[] = [];
	let at = indexBytes;
	for (const [name, {code, cache}] of parts) {
		index[name] = [at, code.length, cache.length];
		chunks.push(code, cache);
		at += code.length + cache.length;
	}
	const text = `${JSON.stringify(index)}\n`;
	if (text.length > indexBytes)
		throw new Error(`the index of the pack has ${text.length} bytes: make indexBytes larger`);
	return Buffer.concat([Buffer.from(text.padEnd(indexBytes)), ...chunks]);
}

/** The same code for another processor, which would refuse the caches of this one. */
export function dropCodeCaches(pack: Buffer): Buffer {
	const index = JSON.parse(pack.toString('latin1', 0, indexBytes)) as PackIndex;
	const parts = Object.entries(index).map(
		([name, [at, length]]) => [name, {code: pack.subarray(at, at + length), cache: Buffer.alloc(0)}] as const,
	);
	return renderPack(new Map(parts));
}
