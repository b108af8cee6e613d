import test from 'ava';
import fc from 'fast-check';
import {parseNameTable} from '../../../src/dns/index.ts';
import {FieldWriter, WireError} from '../../../src/proto/wire.ts';
import {anyBytes, damaged, fuzzRuns, heldCharacters} from '../../support/fuzz.ts';

function entry(host: string, ...addresses: readonly string[]): Buffer {
	const info = new FieldWriter().strings(1, addresses).string(2, 'Kubernetes').string(3, 'a').string(4, 'ns').finish();
	return new FieldWriter().string(1, host).bytes(2, info).finish();
}

const table = new FieldWriter()
	.bytes(1, entry('a.ns.svc.cluster.local', '240.240.0.1', '2001:2::1'))
	.bytes(1, entry('*.wild.example.org', '192.0.2.1'))
	.bytes(1, entry('b.example.org', '192.0.2.2'))
	.finish();

function readsSafely(bytes: Buffer): boolean {
	try {
		const names = parseNameTable(bytes);
		for (const name of names.keys()) if (name === '' || name.length > 255 || /[\s\0]/.test(name)) return false;
		return names.size <= bytes.length && heldCharacters(names) <= 2 * bytes.length;
	} catch (failure) {
		if (failure instanceof WireError) return true;
		throw failure;
	}
}

test('name table › that is whole is read', t => {
	t.is(parseNameTable(table).size, 3);
});

test('name table › of any bytes is a table of bounded size or a WireError', t => {
	fc.assert(
		fc.property(anyBytes, bytes => readsSafely(bytes) && readsSafely(new FieldWriter().bytes(1, bytes).finish())),
		fuzzRuns(5000),
	);
	t.pass();
});

test('name table › that is damaged or cut is a table of bounded size or a WireError', t => {
	fc.assert(
		fc.property(damaged(table), bytes => readsSafely(bytes)),
		fuzzRuns(5000),
	);
	for (let length = 0; length < table.length; length++) t.true(readsSafely(table.subarray(0, length)));
});

test('name table › one name a million times is one name', t => {
	const once = new FieldWriter().bytes(1, entry('a.example.org', '192.0.2.1')).finish();
	t.is(parseNameTable(Buffer.concat(new Array(100_000).fill(once))).size, 1);
});
