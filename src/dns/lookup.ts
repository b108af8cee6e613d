import {AgentError} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import type {Answerer, Verdict} from './answerer.ts';
import {decodeName, encodeName, isFailure, largestMessage, parseQuery, type Query, renderQuery} from './message.ts';
import {parseType, type ReadRecord, readAnswers, renderCode} from './records.ts';
import type {Upstream} from './upstream.ts';
import type {Upstreams} from './upstreams.ts';

export interface Lookup {
	readonly name: string;
	readonly type: string;
	/** Who answers. */
	readonly source: 'mesh' | 'upstream' | 'none';
	/** Why it is they, and what was found. */
	readonly why: string;
	/** The code of the answer, `NOERROR`; undefined when there was none. */
	readonly code: string | undefined;
	readonly records: readonly ReadRecord[];
	/** Servers that were asked, in order. */
	readonly tried: readonly {readonly server: string; readonly result: string; readonly tookMs: number}[];
}

export interface Question {
	readonly name: string;
	/** `A` unless given. */
	readonly type?: string | undefined;
}

export interface LookupDeps {
	readonly answerer: Answerer;
	readonly upstreams: Upstreams;
	readonly clock: Clock;
}

/** Longest wait for each server. */
const perServerMs = 2000;

/** One question, answered as a client's, with the reason. @throws AgentError `dns.name_invalid` */
export async function lookUp(question: unknown, deps: LookupDeps): Promise<Lookup> {
	const {name, type: wanted} = readQuestion(question);
	const key = encodeName(name);
	const number = parseType(wanted);
	if (key === undefined)
		throw new AgentError('dns.name_invalid', `look up "${name}": not a host name`, {
			hint: 'give a name such as echo.demo.mesh',
		});
	if (number === undefined)
		throw new AgentError('dns.name_invalid', `look up "${name}": no such type as "${wanted}"`, {
			hint: 'give A, AAAA, TXT or TYPE65',
		});
	const query = parseQuery(renderQuery(0, key, number)) as Query;
	const {answerer} = deps;
	const verdict = answerer.judge(query);
	const asked = {name: decodeName(key), type: wanted.toUpperCase()};
	const why = explain(verdict, answerer);
	if (verdict.source !== 'upstream') {
		const reply = answerer.answer(query.message, largestMessage) as Buffer;
		return {...asked, source: 'mesh', why, code: renderCode(reply), records: readAnswers(reply), tried: []};
	}
	const {answer, tried} = await askAll(query, deps);
	return {
		...asked,
		source: answer ? 'upstream' : 'none',
		why: tried.length === 0 ? `${why}, and there is no server to ask` : why,
		code: answer && renderCode(answer),
		records: answer ? readAnswers(answer) : [],
		tried,
	};
}

function readQuestion(question: unknown): Required<Question> & {readonly type: string} {
	const {name, type = 'A'} = (question ?? {}) as Readonly<Record<string, unknown>>;
	if (typeof name !== 'string' || typeof type !== 'string')
		throw new AgentError('dns.name_invalid', 'look up a name: none was given', {
			hint: 'send {"name": "echo.demo.mesh"}',
		});
	return {name, type};
}

function explain(verdict: Verdict, {zone}: Answerer): string {
	if (verdict.source === 'upstream') return zone ? 'the mesh does not know the name' : 'there is no name table yet';
	if (verdict.source === 'refused') return 'transfers and updates of names of the mesh are not served';
	if (verdict.source === 'mesh domain') {
		const domain = decodeName(verdict.domain);
		if (verdict.state === 'waiting') return `names in ${domain} are the mesh's, and there is no name table yet`;
		if (verdict.state === 'empty') return `there are only names below it, in ${domain}`;
		return `names in ${domain} are the mesh's, and it has no such name`;
	}
	if ('pointers' in verdict) return 'the address is one of the name table';
	const {host, how, alias} = verdict.match;
	const behind = how === 'name' ? '' : `, by ${how}${alias === undefined ? '' : ` for ${decodeName(alias)}`}`;
	return `${host.name} is in the name table (${host.info.registry || 'no registry'})${behind}`;
}

async function askAll(query: Query, {upstreams, clock}: LookupDeps) {
	const tried: {server: string; result: string; tookMs: number}[] = [];
	let lastResort: Buffer | undefined;
	for (const upstream of upstreams.order()) {
		const fromMs = clock.monotonicMs();
		const {answer, result} = await askOne(query, upstream, upstreams.isTcpOnly);
		tried.push({server: upstream.label, result, tookMs: Math.round((clock.monotonicMs() - fromMs) * 10) / 10});
		if (answer && !isFailure(answer[3]! & 0x0f)) return {answer, tried};
		lastResort ??= answer;
	}
	return {answer: lastResort, tried};
}

const failures = {refused: 'nobody listens there', expired: 'no answer', closed: 'connection ended'};

async function askOne(
	query: Query,
	upstream: Upstream,
	isTcpOnly: boolean,
): Promise<{answer: Buffer | undefined; result: string}> {
	const ask = (isTcp: boolean) =>
		new Promise<{answer: Buffer | undefined; result: string}>(resolve => {
			upstream.ask(query.message, query.questionEnd, isTcp, perServerMs, (answer, why) =>
				resolve({answer, result: answer ? renderCode(answer) : failures[why ?? 'closed']}),
			);
		});
	const first = await ask(isTcpOnly);
	// What was cut short is asked for again, as a client would.
	return first.answer && (first.answer[2]! & 0x02) !== 0 ? ask(true) : first;
}
