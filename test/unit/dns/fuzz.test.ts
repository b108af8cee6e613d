import test from 'ava';
import fc from 'fast-check';
import {parseAddress, parseReverseName} from '../../../src/dns/addresses.ts';
import {Answerer} from '../../../src/dns/answerer.ts';
import {FrameReader, frame} from '../../../src/dns/frames.ts';
import {decodeName, encodeName, isAnswerTo, parseQuery, type Query} from '../../../src/dns/message.ts';
import type {NameTable} from '../../../src/dns/name-table.ts';
import {parseNameTable} from '../../../src/dns/name-table.ts';
import {readAnswers} from '../../../src/dns/records.ts';
import {replyForwarded} from '../../../src/dns/replies.ts';
import {parseResolvConf} from '../../../src/dns/resolv-conf.ts';
import {Tally} from '../../../src/dns/tally.ts';
import {buildZone, type Zone} from '../../../src/dns/zone.ts';
import {Metrics} from '../../../src/lifecycle/index.ts';
import {WireError} from '../../../src/proto/wire.ts';
import {fuzzRuns} from '../../support/fuzz.ts';
import {meshTable, question} from './world.ts';

const settings = {ttlSeconds: 30, namespace: 'shop', clusterDomain: 'svc.cluster.local'};
function zoneOf(table: NameTable): Zone {
	const steps = buildZone(table, settings);
	for (;;) {
		const {done, value} = steps.next();
		if (done) return value;
	}
}

const answerer = new Answerer(
	{ttlSeconds: 30, meshDomains: [encodeName('svc.cluster.local')!]},
	() => 0.999,
	new Tally(new Metrics()),
);
answerer.setZone(zoneOf(parseNameTable(meshTable)));
answerer.setSearch([encodeName('corp.example')!]);

const names = [
	'echo.demo.mesh',
	'many.shop.svc.cluster.local',
	'x.wild.mesh.corp.example',
	'no.svc.cluster.local',
	'cart.corp.example',
	'www.example.com',
	'1.0.0.10.in-addr.arpa',
];
const types = ['A', 'AAAA', 'ANY', 'PTR', 'TXT', 'TYPE252'];

/** Nearly right: a question with some bytes changed, cut short or made longer. */
const mutated = fc
	.tuple(
		fc.constantFrom(...names),
		fc.constantFrom(...types),
		fc.array(fc.tuple(fc.nat(80), fc.nat(255)), {maxLength: 4}),
		fc.nat(80),
		fc.uint8Array({maxLength: 20}),
	)
	.map(([name, type, changes, length, tail]) => {
		const message = question(name, type);
		for (const [position, value] of changes) if (position < message.length) message[position] = value;
		return Buffer.concat([length > 60 ? message : message.subarray(0, length), tail]);
	});
const anything = fc.uint8Array({maxLength: 600}).map(bytes => Buffer.from(bytes));
const packets = fc.oneof({weight: 3, arbitrary: mutated}, anything);

test('fuzz › whatever comes in, the answer is none, one that fits, or the question itself to be forwarded', t => {
	fc.assert(
		fc.property(packets, fc.option(fc.constant(65_535), {nil: undefined}), (packet, largest) => {
			const before = Buffer.from(packet);
			const answer = answerer.answer(packet, largest);
			if (!packet.equals(before)) return false;
			if (answer === undefined) return packet.length < 12 || (packet[2]! & 0x80) !== 0;
			if (!Buffer.isBuffer(answer)) return answer.message === packet;
			const query = parseQuery(packet);
			const limit = typeof query === 'object' ? (largest ?? query.udpSize) : 12;
			readAnswers(answer);
			return answer.length <= limit && answer[0] === packet[0] && answer[1] === packet[1] && (answer[2]! & 0x80) !== 0;
		}),
		fuzzRuns(20_000),
	);
	t.pass();
});

test('fuzz › whatever a server answers is passed on within the limit, or not taken', t => {
	const asked = question('www.example.com');
	const query = parseQuery(asked) as Query;
	const answers = fc.oneof(
		anything,
		fc.uint8Array({maxLength: 900}).map(tail => {
			const answer = Buffer.concat([asked.subarray(0, query.questionEnd), tail]);
			answer[2] = 0x81;
			return answer;
		}),
	);
	fc.assert(
		fc.property(answers, answer => {
			if (answer.length >= 12) readAnswers(answer);
			if (!isAnswerTo(answer, asked, query.questionEnd)) return true;
			const reply = replyForwarded(query, answer, 512);
			return reply.length <= 512 && reply[0] === asked[0] && reply[1] === asked[1];
		}),
		fuzzRuns(10_000),
	);
	t.pass();
});

test('fuzz › a name table is read, or refused as malformed', t => {
	const changed = fc.array(fc.tuple(fc.nat(meshTable.length - 1), fc.nat(255)), {maxLength: 6}).map(changes => {
		const table = Buffer.from(meshTable);
		for (const [position, value] of changes) table[position] = value;
		return table;
	});
	fc.assert(
		fc.property(fc.oneof(changed, anything), table => {
			try {
				const zone = zoneOf(parseNameTable(table));
				for (const key of zone.names.keys()) zone.find(key, []);
				zone.namesOf('0a000001');
				zone.hasNamesBelow(encodeName('mesh')!);
				return true;
			} catch (error) {
				return error instanceof WireError;
			}
		}),
		fuzzRuns(5000),
	);
	t.pass();
});

test('fuzz › messages over TCP come out as they went in, wherever they are cut', t => {
	fc.assert(
		fc.property(
			fc.array(fc.uint8Array({maxLength: 300}), {maxLength: 8}),
			fc.array(fc.integer({min: 1, max: 40}), {minLength: 1, maxLength: 20}),
			(messages, cuts) => {
				const all = Buffer.concat(messages.map(message => frame(Buffer.from(message))));
				const reader = new FrameReader();
				const read: Buffer[] = [];
				for (let position = 0, turn = 0; position < all.length; turn++) {
					const end = position + cuts[turn % cuts.length]!;
					read.push(...reader.read(all.subarray(position, end)));
					position = end;
				}
				return (
					!reader.isPartial && Buffer.concat(read).equals(Buffer.concat(messages)) && read.length === messages.length
				);
			},
		),
	);
	t.pass();
});

test('fuzz › names survive the way to the wire and back, and resolv.conf is never too much', t => {
	const label = fc.stringMatching(/^[a-z0-9_-]{1,20}$/);
	fc.assert(
		fc.property(fc.array(label, {minLength: 1, maxLength: 8}), labels => {
			const name = labels.join('.');
			return decodeName(encodeName(name)!) === name;
		}),
	);
	fc.assert(
		fc.property(fc.string(), text => {
			const {servers} = parseResolvConf(`nameserver ${text}\nsearch ${text}\noptions ${text}`);
			return servers.length > 0 && servers.length <= 8;
		}),
	);
	t.pass();
});

test('fuzz › addresses are read as the system writes them', t => {
	fc.assert(
		fc.property(fc.ipV6(), text => {
			const bytes = parseAddress(text)!;
			const groups = Array.from({length: 8}, (_, index) => (bytes[index * 2]! << 8) | bytes[index * 2 + 1]!);
			const full = groups.map(group => group.toString(16)).join(':');
			return new URL(`http://[${full}]`).hostname === new URL(`http://[${text}]`).hostname;
		}),
	);
	fc.assert(
		fc.property(fc.ipV4(), text => {
			const name = `${text.split('.').reverse().join('.')}.in-addr.arpa`;
			return parseReverseName(encodeName(name)!) === Buffer.from(parseAddress(text)!).toString('hex');
		}),
	);
	for (const name of [
		'256.0.0.1.in-addr.arpa',
		'1.2.3.in-addr.arpa',
		'01.2.3.4.in-addr.arpa',
		'g.ip6.arpa',
		'in-addr.arpa',
	])
		t.is(parseReverseName(encodeName(name)!), undefined, name);
});
