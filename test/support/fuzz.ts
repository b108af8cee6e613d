import fc from 'fast-check';

/**
 * One seed, so that a run can be repeated and main does not fail by luck; others by hand:
 * `ONRAMP_FUZZ_SEED=$RANDOM ONRAMP_FUZZ_FACTOR=50 npx ava 'test/unit/**\/*fuzz*'`.
 */
export function fuzzRuns(numRuns: number): {seed: number; numRuns: number} {
	const {ONRAMP_FUZZ_SEED: seed = '1', ONRAMP_FUZZ_FACTOR: factor = '1'} = process.env;
	return {seed: Number(seed), numRuns: numRuns * Number(factor)};
}

const edits = fc.array(
	fc.record({
		at: fc.nat(1_000_000),
		value: fc.integer({min: 0, max: 255}),
		kind: fc.constantFrom('set', 'cut', 'insert', 'repeat', 'end'),
	}),
	{minLength: 1, maxLength: 5},
);

/** Copies of these bytes, damaged in a few places. */
export function damaged(...originals: readonly Buffer[]): fc.Arbitrary<Buffer> {
	return fc.tuple(fc.constantFrom(...originals), edits).map(([original, list]) => {
		let bytes = Buffer.from(original);
		for (const {at, value, kind} of list) {
			const place = at % (bytes.length + 1);
			const [before, after] = [bytes.subarray(0, place), bytes.subarray(place)];
			if (kind === 'set' && after.length > 0) bytes[place] = value;
			else if (kind === 'cut') bytes = Buffer.concat([before, after.subarray(1 + (value % 16))]);
			else if (kind === 'insert') bytes = Buffer.concat([before, Buffer.from([value]), after]);
			else if (kind === 'repeat') bytes = Buffer.concat([before, after.subarray(0, value), after]);
			else if (kind === 'end') bytes = Buffer.from(before);
		}
		return bytes;
	});
}

/** Any bytes at all. */
export const anyBytes: fc.Arbitrary<Buffer> = fc.uint8Array({maxLength: 400}).map(bytes => Buffer.from(bytes));

/** Characters and bytes in all of a value: what a parser makes of its input may not be much more than the input. */
export function heldCharacters(value: unknown): number {
	if (typeof value === 'string') return value.length;
	if (Buffer.isBuffer(value)) return value.length;
	if (value instanceof Map)
		return [...value].reduce((sum, [key, each]) => sum + heldCharacters(key) + heldCharacters(each), 0);
	if (Array.isArray(value)) return value.reduce<number>((sum, each) => sum + heldCharacters(each), 0);
	if (typeof value === 'object' && value !== null) return heldCharacters(Object.values(value));
	return 0;
}
