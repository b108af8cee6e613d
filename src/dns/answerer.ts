import {parseReverseName} from './addresses.ts';
import {classAny, classIn, extendedError, parseQuery, type Query, rcode, type} from './message.ts';
import {replyAlias, replyError, replyNothing, replyPointers, replyRecords, replyUnreadable} from './replies.ts';
import type {Outcome, Tally} from './tally.ts';
import type {Match, Zone} from './zone.ts';

export interface AnswererSettings {
	readonly ttlSeconds: number;
	/** Domains whose names are the mesh's, known or not, as on the wire: they are never asked for elsewhere. */
	readonly meshDomains: readonly string[];
}

/** Why a question is, or is not, answered from the name table. */
export type Verdict =
	| {readonly source: 'mesh'; readonly match: Match}
	| {readonly source: 'mesh'; readonly pointers: readonly string[]}
	/** In a domain of the mesh: `absent` = no such name, `empty` = only names below it, `waiting` = no table yet. */
	| {readonly source: 'mesh domain'; readonly domain: string; readonly state: 'absent' | 'empty' | 'waiting'}
	| {readonly source: 'refused'}
	| {readonly source: 'upstream'};

const upstream: Verdict = {source: 'upstream'};

/** Answers what the name table knows, and says what has to be asked for elsewhere. */
export class Answerer {
	readonly #settings: AnswererSettings;
	readonly #random: () => number;
	readonly #tally: Tally;
	#zone: Zone | undefined;
	#search: readonly string[] = [];

	constructor(settings: AnswererSettings, random: () => number, tally: Tally) {
		this.#settings = settings;
		this.#random = random;
		this.#tally = tally;
	}

	get zone(): Zone | undefined {
		return this.#zone;
	}

	setZone(zone: Zone): void {
		this.#zone = zone;
	}

	/** Domains that this machine's resolvers put behind names, as on the wire. */
	setSearch(search: readonly string[]): void {
		this.#search = search;
	}

	/**
	 * @param largest - bytes that the transport takes; undefined = what the client says
	 * @returns the reply; the query when it is to be forwarded; undefined when nothing is to be said
	 */
	answer(message: Buffer, largest?: number): Buffer | Query | undefined {
		const query = parseQuery(message);
		if (query === undefined) {
			this.#tally.count('local', 'dropped');
			return undefined;
		}
		if (typeof query === 'number') {
			this.#tally.count('local', 'formerr');
			return replyUnreadable(message, query);
		}
		const limit = largest ?? query.udpSize;
		// The way of most questions of the mesh: a name as the table has it, and an address.
		if (query.class === classIn && (message[2]! & 0x78) === 0 && query.ednsVersion === 0) {
			const host = this.#zone?.names.get(query.key);
			if (host) {
				const records = query.type === type.a ? host.ipv4 : query.type === type.aaaa ? host.ipv6 : undefined;
				if (records && records.bytes.length > 0) {
					this.#tally.count('mesh', 'answered');
					return replyRecords(query, records, limit, this.#random());
				}
			}
		}
		return this.#answerRest(query, limit);
	}

	#answerRest(query: Query, limit: number): Buffer | Query {
		if (query.ednsVersion !== 0) return this.#say('local', 'refused', replyError(query, rcode.badVersion));
		const verdict = this.judge(query);
		const {ttlSeconds} = this.#settings;
		if (verdict.source === 'upstream') return query;
		if (verdict.source === 'refused')
			return this.#say('local', 'refused', replyError(query, rcode.refused, extendedError.notSupported));
		if (verdict.source === 'mesh domain') {
			if (verdict.state === 'waiting')
				return this.#say('mesh', 'servfail', replyError(query, rcode.servFail, extendedError.notReady));
			if (verdict.state === 'empty')
				return this.#say('mesh', 'nodata', replyNothing(query, rcode.noError, query.key.length, ttlSeconds, limit));
			const zoneLength = verdict.domain.length;
			return this.#say('mesh', 'nxdomain', replyNothing(query, rcode.nxDomain, zoneLength, ttlSeconds, limit));
		}
		if ('pointers' in verdict)
			return this.#say('mesh', 'answered', replyPointers(query, verdict.pointers, ttlSeconds, limit));
		const {host, alias} = verdict.match;
		const records = recordsOf(query.type, host);
		if (!records || records.bytes.length === 0)
			return this.#say('mesh', 'nodata', replyNothing(query, rcode.noError, query.key.length, ttlSeconds, limit));
		const random = this.#random();
		return this.#say(
			'mesh',
			'answered',
			alias === undefined
				? replyRecords(query, records, limit, random)
				: replyAlias(query, alias, records, ttlSeconds, limit, random),
		);
	}

	/** Who answers, without answering. */
	judge({key, type: wanted, class: wantedClass, message}: Query): Verdict {
		// Updates and other classes are not ours to understand, and names of the mesh nobody else's.
		const isOrdinary = (message[2]! & 0x78) === 0 && (wantedClass === classIn || wantedClass === classAny);
		const match = this.#zone?.find(key, this.#search);
		if (match) return isOrdinary ? {source: 'mesh', match} : {source: 'refused'};
		const domain = this.#settings.meshDomains.find(name => key.endsWith(name));
		if (domain !== undefined) {
			if (!isOrdinary) return {source: 'refused'};
			if (!this.#zone) return {source: 'mesh domain', domain, state: 'waiting'};
			const isEmpty = key === domain || this.#zone.hasNamesBelow(key);
			return {source: 'mesh domain', domain, state: isEmpty ? 'empty' : 'absent'};
		}
		if (wanted === type.ptr && this.#zone) {
			const address = parseReverseName(key);
			const pointers = address === undefined ? [] : this.#zone.namesOf(address);
			if (pointers.length > 0) return {source: 'mesh', pointers};
		}
		// A transfer has many messages, and would hold a connection for as long as it likes.
		if (wanted === type.axfr || wanted === type.ixfr) return {source: 'refused'};
		return upstream;
	}

	#say(source: 'mesh' | 'local', outcome: Outcome, reply: Buffer): Buffer {
		this.#tally.count(source, outcome);
		return reply;
	}
}

function recordsOf(wanted: number, host: Match['host']) {
	if (wanted === type.a) return host.ipv4;
	if (wanted === type.aaaa) return host.ipv6;
	return wanted === type.any ? host.any : undefined;
}
