import {classIn, headerLength, optLength, type Query, rcode, type, writeOpt} from './message.ts';

/** Records owned by the question's name, encoded: an owner of two bytes that points to it, then all the same length. */
export interface EncodedRecords {
	readonly bytes: Buffer;
	readonly each: number;
}

/** The question's name stands right after the header, so every answer may point there. */
const toQuestion = 0xc000 | headerLength;

export const noRecords: EncodedRecords = {bytes: Buffer.alloc(0), each: 1};

/** @param addresses - of one family, 4 or 16 bytes each */
export function encodeAddresses(addresses: readonly Uint8Array[], ttlSeconds: number): EncodedRecords {
	const [first] = addresses;
	if (!first) return noRecords;
	const each = 12 + first.length;
	const bytes = Buffer.alloc(each * addresses.length);
	for (const [index, address] of addresses.entries()) {
		const start = index * each;
		const recordType = first.length === 4 ? type.a : type.aaaa;
		writeFixed(bytes, start, toQuestion, recordType, ttlSeconds, address.length);
		bytes.set(address, start + 12);
	}
	return {bytes, each};
}

function writeFixed(
	target: Buffer,
	start: number,
	owner: number,
	recordType: number,
	ttl: number,
	length: number,
): void {
	target.writeUInt16BE(owner, start);
	target.writeUInt16BE(recordType, start + 2);
	target.writeUInt16BE(classIn, start + 4);
	target.writeUInt32BE(ttl, start + 6);
	target.writeUInt16BE(length, start + 10);
}

/** Response, authoritative; recursion is always available, or some resolvers take an empty answer for a lame server. */
const authoritative = 0x84;
const response = 0x80;
const recursionAvailable = 0x80;
const truncated = 0x02;

/** The header and question of the query as those of a reply, with room for more. Opcode and RD stay, counts are 0. */
function begin({message, questionEnd}: Query, length: number, flags: number, code: number): Buffer {
	const reply = Buffer.allocUnsafe(length);
	message.copy(reply, 0, 0, questionEnd);
	reply[2] = flags | (message[2]! & 0x79);
	// CD is the client's (RFC 4035, section 3.1.6), AD never ours.
	reply[3] = recursionAvailable | (message[3]! & 0x10) | (code & 0x0f);
	reply[6] = 0;
	reply[7] = 0;
	reply[8] = 0;
	reply[9] = 0;
	reply[10] = 0;
	reply[11] = 0;
	return reply;
}

/** Appends OPT where the query had one. */
function finish(reply: Buffer, query: Query, end: number, code = 0): Buffer {
	if (!query.hasEdns) return reply;
	writeOpt(reply, end, code >> 4, query.isDnssecWanted);
	reply[11] = 1;
	return reply;
}

/**
 * A reply with these records, begun at a random one so that clients spread over all.
 * @param limit - bytes that the client takes; what does not fit is left out, and the reply says so
 * @param random - in [0, 1)
 */
export function replyRecords(query: Query, {bytes, each}: EncodedRecords, limit: number, random: number): Buffer {
	const count = bytes.length / each;
	const tail = query.hasEdns ? optLength : 0;
	const fitting = Math.max(0, Math.min(count, Math.floor((limit - query.questionEnd - tail) / each)));
	const end = query.questionEnd + fitting * each;
	const reply = begin(query, end + tail, authoritative | (fitting < count ? truncated : 0), rcode.noError);
	if (count === 1) bytes.copy(reply, query.questionEnd);
	else {
		const from = Math.floor(random * count) * each;
		const copied = bytes.copy(reply, query.questionEnd, from, Math.min(bytes.length, from + fitting * each));
		bytes.copy(reply, query.questionEnd + copied, 0, fitting * each - copied);
	}
	reply[6] = fitting >> 8;
	reply[7] = fitting & 0xff;
	return finish(reply, query, end);
}

/**
 * The question's name is another name for `target`, whose addresses follow.
 * @param target - as on the wire
 */
export function replyAlias(
	query: Query,
	target: string,
	records: EncodedRecords,
	ttlSeconds: number,
	limit: number,
	random: number,
): Buffer {
	const alias = Buffer.alloc(12 + target.length);
	writeFixed(alias, 0, toQuestion, type.cname, ttlSeconds, target.length);
	alias.write(target, 12, 'latin1');
	const whole = replyRecords(query, records, limit - alias.length, random);
	const {questionEnd} = query;
	const reply = Buffer.concat([whole.subarray(0, questionEnd), alias, whole.subarray(questionEnd)]);
	const count = (whole[6]! << 8) | whole[7]!;
	for (let index = 0; index < count; index++)
		reply.writeUInt16BE(0xc000 | (questionEnd + 12), questionEnd + alias.length + index * records.each);
	reply.writeUInt16BE(count + 1, 6);
	return reply;
}

/** @param names - as on the wire */
export function replyPointers(query: Query, names: readonly string[], ttlSeconds: number, limit: number): Buffer {
	const tail = query.hasEdns ? optLength : 0;
	let length = query.questionEnd + tail;
	const fitting = names.filter(name => {
		length += 12 + name.length;
		return length <= limit;
	});
	const size = fitting.reduce((sum, name) => sum + 12 + name.length, query.questionEnd);
	const reply = begin(
		query,
		size + tail,
		authoritative | (fitting.length < names.length ? truncated : 0),
		rcode.noError,
	);
	let position = query.questionEnd;
	for (const name of fitting) {
		writeFixed(reply, position, toQuestion, type.ptr, ttlSeconds, name.length);
		reply.write(name, position + 12, 'latin1');
		position += 12 + name.length;
	}
	reply.writeUInt16BE(fitting.length, 6);
	return finish(reply, query, position);
}

const soaLength = 12 + 4 + 20;

/**
 * Nothing of that type (`noError`) or no such name (`nxDomain`), and for how long that may be remembered: without a
 * SOA record it may not be at all (RFC 2308, section 5).
 * @param zoneLength - bytes of the name, root included, that are the zone: all of it for a name that exists
 */
export function replyNothing(
	query: Query,
	code: number,
	zoneLength: number,
	ttlSeconds: number,
	limit: number,
): Buffer {
	const tail = query.hasEdns ? optLength : 0;
	const {questionEnd} = query;
	if (questionEnd + soaLength + tail > limit) return replyError(query, code);
	const reply = begin(query, questionEnd + soaLength + tail, authoritative, code);
	const zone = 0xc000 | (query.nameEnd - zoneLength);
	writeFixed(reply, questionEnd, zone, type.soa, ttlSeconds, soaLength - 12);
	reply.writeUInt16BE(zone, questionEnd + 12);
	reply.writeUInt16BE(zone, questionEnd + 14);
	// Serial, refresh, retry, expire: nobody transfers this zone. The last is the one that counts.
	for (const [index, value] of [1, 3600, 600, 86_400, ttlSeconds].entries())
		reply.writeUInt32BE(value, questionEnd + 16 + index * 4);
	reply[9] = 1;
	return finish(reply, query, questionEnd + soaLength);
}

/** @param reason - an extended DNS error, for clients that speak EDNS */
export function replyError(query: Query, code: number, reason?: number): Buffer {
	const {questionEnd} = query;
	const option = query.hasEdns && reason !== undefined ? 6 : 0;
	const tail = query.hasEdns ? optLength + option : 0;
	const reply = finish(begin(query, questionEnd + tail, response, code), query, questionEnd, code);
	if (option > 0) {
		const start = questionEnd + optLength;
		reply.writeUInt16BE(option, start - 2);
		reply.writeUInt16BE(15, start); // EDE
		reply.writeUInt16BE(2, start + 2);
		reply.writeUInt16BE(reason!, start + 4);
	}
	return reply;
}

/** To a query whose question could not be read: the header alone. */
export function replyUnreadable(message: Buffer, code: number): Buffer {
	const reply = Buffer.alloc(headerLength);
	reply[0] = message[0]!;
	reply[1] = message[1]!;
	reply[2] = response | (message[2]! & 0x79);
	reply[3] = recursionAvailable | code;
	return reply;
}

/** An answer of an upstream's as this client gets it: its id, its spelling of the name, and no more than it takes. */
export function replyForwarded(query: Query, answer: Buffer, limit: number): Buffer {
	const {message, questionEnd} = query;
	if (answer.length > limit) {
		const reply = begin(query, questionEnd + (query.hasEdns ? optLength : 0), response | truncated, answer[3]! & 0x0f);
		return finish(reply, query, questionEnd);
	}
	const reply = Buffer.from(answer);
	reply[0] = message[0]!;
	reply[1] = message[1]!;
	if (reply[5] === 1) message.copy(reply, headerLength, headerLength, questionEnd);
	return reply;
}
