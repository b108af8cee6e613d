import test from 'ava';
import fc from 'fast-check';
import protobuf from 'protobufjs';
import {FieldReader, FieldWriter, WireError} from '../../../src/proto/wire.ts';
import {root} from '../../support/istio-resources.ts';

const response = root.lookupType('envoy.service.discovery.v3.DeltaDiscoveryResponse');

interface Resource {
	name: string;
	version: string;
	resource: {type_url: string; value: Buffer};
}

interface Response {
	system_version_info: string;
	type_url: string;
	nonce: string;
	resources: Resource[];
	removed_resources: string[];
}

const text = fc.string({unit: 'binary', maxLength: 40});
const content = fc.uint8Array({maxLength: 200}).map(bytes => Buffer.from(bytes));
const responses: fc.Arbitrary<Response> = fc.record({
	system_version_info: text,
	type_url: text,
	nonce: text,
	resources: fc.array(fc.record({name: text, version: text, resource: fc.record({type_url: text, value: content})}), {
		maxLength: 5,
	}),
	removed_resources: fc.array(text, {maxLength: 5}),
});

/** Field numbers of DeltaDiscoveryResponse, Resource and Any. */
function readResponse(bytes: Buffer): Response {
	const out: Response = {system_version_info: '', type_url: '', nonce: '', resources: [], removed_resources: []};
	const field = new FieldReader(bytes);
	while (field.next()) {
		if (field.number === 1) out.system_version_info = field.string();
		else if (field.number === 2) out.resources.push(readResource(field.message()));
		else if (field.number === 4) out.type_url = field.string();
		else if (field.number === 5) out.nonce = field.string();
		else if (field.number === 6) out.removed_resources.push(field.string());
	}
	return out;
}

function readResource(field: FieldReader): Resource {
	const out: Resource = {name: '', version: '', resource: {type_url: '', value: Buffer.alloc(0)}};
	while (field.next()) {
		if (field.number === 1) out.version = field.string();
		else if (field.number === 3) out.name = field.string();
		else if (field.number === 2) {
			const any = field.message();
			while (any.next()) {
				if (any.number === 1) out.resource.type_url = any.string();
				else if (any.number === 2) out.resource.value = any.bytes();
			}
		}
	}
	return out;
}

function writeResponse(value: Response): Buffer {
	const out = new FieldWriter().string(1, value.system_version_info);
	for (const {name, version, resource} of value.resources) {
		out.message(2, entry =>
			entry
				.string(1, version)
				.message(2, any => any.string(1, resource.type_url).bytes(2, resource.value))
				.string(3, name),
		);
	}
	return out.string(4, value.type_url).string(5, value.nonce).strings(6, value.removed_resources).finish();
}

test('field reader › reads what protobufjs writes', t => {
	fc.assert(
		fc.property(responses, value => {
			const bytes = Buffer.from(response.encode(response.fromObject(value)).finish());
			t.deepEqual(readResponse(bytes), value);
		}),
	);
});

test('field writer › writes what protobufjs reads', t => {
	fc.assert(
		fc.property(responses, value => {
			const read = response.toObject(response.decode(writeResponse(value)), {
				bytes: Buffer,
				defaults: true,
			}) as Response;
			t.deepEqual(readResponse(writeResponse(value)), value);
			t.is(read.nonce, value.nonce);
			t.deepEqual(read.removed_resources, value.removed_resources);
			t.deepEqual(
				read.resources.map(({resource}) => resource.value),
				value.resources.map(({resource}) => resource.value),
			);
		}),
	);
});

test('field reader › reads a prefix of any length as the fields that are whole, or throws a WireError', t => {
	const [value] = fc.sample(responses, {numRuns: 1, seed: 7});
	const bytes = writeResponse({...value!, removed_resources: ['a', 'b'], nonce: 'nonce'});
	const ends = new Set([0]);
	const field = new FieldReader(bytes);
	while (field.next()) ends.add(field.end);
	for (let length = 0; length < bytes.length; length++) {
		const read = () => readResponse(bytes.subarray(0, length));
		if (ends.has(length)) t.notThrows(read);
		else t.throws(read, {name: 'WireError'});
	}
});

test('field reader › ends on any bytes, with fields that cover them all or with a WireError', t => {
	fc.assert(
		fc.property(fc.uint8Array({maxLength: 100}), input => {
			const bytes = Buffer.from(input);
			const field = new FieldReader(bytes);
			let at = 0;
			try {
				while (field.next()) {
					if (field.start !== at || field.end <= at) return false;
					at = field.end;
				}
			} catch (error) {
				return error instanceof WireError;
			}
			return at === bytes.length;
		}),
		{numRuns: 5000},
	);
	t.pass();
});

test('field reader › agrees with protobufjs on every varint', t => {
	fc.assert(
		fc.property(fc.integer({min: 0, max: 2 ** 53 - 1}), fc.integer(), (large, signed) => {
			const bytes = Buffer.from(protobuf.Writer.create().uint32(8).uint64(large).uint32(16).int32(signed).finish());
			const field = new FieldReader(bytes);
			field.next();
			const first = field.uint();
			field.next();
			return first === large && field.int32() === signed;
		}),
	);
	t.pass();
});

test('field writer › agrees with protobufjs on every varint', t => {
	fc.assert(
		fc.property(fc.integer({min: 1, max: 2 ** 53 - 1}), value => {
			const expected = Buffer.from(protobuf.Writer.create().uint32(8).uint64(value).finish());
			return new FieldWriter().uint(1, value).finish().equals(expected);
		}),
	);
	t.pass();
});

for (const [what, bytes] of [
	['field number 0', [0x00, 0x00]],
	['a group', [0x0b, 0x0c]],
	['wire type 7', [0x0f]],
	['a length past the end', [0x0a, 0x02, 0x61]],
	['a length of 2^63', [0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]],
	['a varint of eleven bytes', [0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]],
	['a field number above 2^29', [0xf8, 0xff, 0xff, 0xff, 0x7f, 0x00]],
] as const) {
	test(`field reader › refuses ${what}`, t => {
		t.throws(
			() => {
				const field = new FieldReader(Buffer.from(bytes));
				while (field.next());
			},
			{name: 'WireError'},
		);
	});
}

test('field reader › refuses to read a value as another wire type', t => {
	const field = new FieldReader(new FieldWriter().uint(1, 5).finish());
	field.next();
	t.throws(() => field.string(), {name: 'WireError'});
	t.throws(() => field.message(), {name: 'WireError'});
});
