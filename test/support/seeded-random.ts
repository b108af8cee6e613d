/** Numbers in [0, 1) that look random and are the same each time (mulberry32). */
export function seededRandom(seed: number): () => number {
	let state = seed;
	return () => {
		state = (state + 0x6d2b79f5) | 0;
		let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
		mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
		return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
	};
}

/** How many of these times, in milliseconds, fall into the fullest window of this length, wherever it begins. */
export function mostWithin(windowMs: number, timesMs: readonly number[]): number {
	const sorted = [...timesMs].sort((a, b) => a - b);
	let [from, most] = [0, 0];
	for (const [i, time] of sorted.entries()) {
		while (time - sorted[from]! >= windowMs) from++;
		most = Math.max(most, i - from + 1);
	}
	return most;
}
