import test from 'ava';
import fc from 'fast-check';
import {FieldWriter, WireError} from '../../../src/proto/wire.ts';
import {
	buildDelta,
	buildSotw,
	encodeDeltaRequest,
	encodeSotwRequest,
	parseDeltaRequest,
	parseDeltaResponse,
	parseSotwRequest,
	parseSotwResponse,
} from '../../../src/relay/envelope.ts';
import {anyBytes, damaged, fuzzRuns, heldCharacters} from '../../support/fuzz.ts';

const any = new FieldWriter()
	.string(1, 'type.googleapis.com/envoy.config.cluster.v3.Cluster')
	.bytes(2, new FieldWriter().string(1, 'outbound|80||a.mesh').bytes(9, Buffer.from('endpoint')).finish())
	.finish();
const typeUrl = 'type.googleapis.com/envoy.config.cluster.v3.Cluster';

const nothingExpected = {anyBytes: 0, count: 0, nameBytes: 0};
const delta = buildDelta(nothingExpected);
delta.add('outbound|80||a.mesh', 'v1', any);
delta.add('', '', Buffer.alloc(0));
const sotw = buildSotw(nothingExpected);
sotw.add('outbound|80||a.mesh', 'v1', any);
const node = new FieldWriter().string(1, 'sidecar~192.0.2.1~vm~local').finish();
const error = {code: 13, message: 'no such filter' as string};

const parsers = {
	'a delta response': [parseDeltaResponse, delta.finish(typeUrl, 'nonce', ['gone', 'also'])],
	'a state-of-the-world response': [parseSotwResponse, sotw.finish(typeUrl, 'nonce', [])],
	'a delta request': [
		parseDeltaRequest,
		encodeDeltaRequest({node, typeUrl, subscribe: ['a', 'b'], unsubscribe: ['c'], nonce: 'n', error}),
	],
	'a state-of-the-world request': [
		parseSotwRequest,
		encodeSotwRequest({node, typeUrl, names: ['a', 'b'], version: 'v', nonce: 'n', error}),
	],
} as const;

/** A value no larger than what it was read from, or a WireError; anything else is a crash waiting. */
function readsSafely(parse: (message: Buffer) => unknown, bytes: Buffer): boolean {
	try {
		// Each name of the state of the world is read once more from inside its resource.
		return heldCharacters(parse(bytes)) <= 2 * bytes.length;
	} catch (failure) {
		if (failure instanceof WireError) return true;
		throw failure;
	}
}

for (const [what, [parse, whole]] of Object.entries(parsers)) {
	test(`envelope › ${what} that is whole is read`, t => {
		t.true(heldCharacters(parse(whole)) > 20);
	});

	test(`envelope › ${what} of any bytes is a value of bounded size or a WireError`, t => {
		fc.assert(
			fc.property(anyBytes, bytes => readsSafely(parse, bytes)),
			fuzzRuns(3000),
		);
		t.pass();
	});

	test(`envelope › ${what} that is damaged or cut is a value of bounded size or a WireError`, t => {
		fc.assert(
			fc.property(damaged(whole), bytes => readsSafely(parse, bytes)),
			fuzzRuns(3000),
		);
		for (let length = 0; length < whole.length; length++) t.true(readsSafely(parse, whole.subarray(0, length)));
	});
}

test('envelope › a length far past the end allocates nothing', t => {
	// Field 2, length 2^28 - 1, and no content.
	const lie = Buffer.from([0x12, 0xff, 0xff, 0xff, 0x7f]);
	for (const [parse] of Object.values(parsers)) t.throws(() => parse(lie), {instanceOf: WireError});
});

test('envelope › tells which resources hold some bytes', t => {
	const letters = fc.string({unit: fc.constantFrom('a', 'b'), maxLength: 6});
	fc.assert(
		fc.property(
			fc.array(fc.tuple(letters, letters), {maxLength: 8}),
			fc.constantFrom('a', 'ab', 'aba', 'abab'),
			(list, text) => {
				const builder = buildDelta(nothingExpected);
				for (const [name, content] of list) builder.add(name, 'abab', Buffer.from(content));
				const {resources} = parseDeltaResponse(builder.finish('abab', 'abab', ['abab']));
				const expected = list.flatMap(([, content], index) => (content.includes(text) ? [index] : []));
				return fc.stringify([...resources.holding(Buffer.from(text))]) === fc.stringify(expected);
			},
		),
		fuzzRuns(2000),
	);
	t.pass();
});
