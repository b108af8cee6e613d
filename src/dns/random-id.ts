import {randomFillSync} from 'node:crypto';

/** Drawn many at a time: one call costs as much as a whole query. */
const drawn = new Uint16Array(1024);
let left = 0;

/** An id that cannot be foretold and is not in use. */
export function randomId(used: {has(id: number): boolean}): number {
	for (;;) {
		if (left === 0) {
			randomFillSync(drawn);
			left = drawn.length;
		}
		const id = drawn[--left]!;
		if (!used.has(id)) return id;
	}
}
