import type {Clock} from '../lifecycle/index.ts';
import {extendedError, isFailure, type Query, rcode} from './message.ts';
import {replyError, replyForwarded} from './replies.ts';
import type {Outcome, Tally} from './tally.ts';
import type {Upstream} from './upstream.ts';

export interface ForwarderDeps {
	readonly clock: Clock;
	readonly tally: Tally;
	/** Those to ask, best first; asked for anew at each try. */
	readonly order: () => readonly Upstream[];
	readonly settings: {
		/** All tries of one question. */
		readonly timeoutMs: number;
		/** Questions in flight; past this they are refused. */
		readonly mostInFlight: number;
	};
}

interface Waiter {
	readonly query: Query;
	readonly limit: number;
	readonly respond: (reply: Buffer) => void;
}

interface Exchange {
	readonly key: string;
	readonly query: Query;
	readonly isTcp: boolean;
	readonly waiters: Waiter[];
	readonly deadlineMs: number;
	readonly asked: Set<Upstream>;
	/** Of the last server asked; others are asked when it is over. */
	nextTryMs: number;
	last: Upstream | undefined;
	tries: number;
	outstanding: number;
	/** An answer that another server might better. */
	lastResort: Buffer | undefined;
	isDone: boolean;
}

/** How often waits are looked at while there are any: bounds how late a wait ends. */
const tickMs = 10;
/** Of one question: each server once, and once more round for packets that were lost. */
const mostTries = 6;
/** Clients that wait for one answer; who asks the same thing more often is not listened to. */
const mostWaiters = 256;

/** Asks other servers: identical questions once, the next server when one is slow, all within a bounded time and number. */
export class Forwarder {
	readonly #deps: ForwarderDeps;
	readonly #inFlight = new Map<string, Exchange>();
	readonly #stopping = new AbortController();
	#isTicking = false;
	#waiting = 0;

	constructor(deps: ForwarderDeps) {
		this.#deps = deps;
	}

	get inFlight(): number {
		return this.#inFlight.size;
	}

	/** Clients that wait, those who share a question included. */
	get waiting(): number {
		return this.#waiting;
	}

	/** @param limit - bytes that the client takes */
	forward(query: Query, isTcp: boolean, limit: number, respond: (reply: Buffer) => void): void {
		// All but the id: the same bytes have the same answer.
		const key = (isTcp ? 't' : 'u') + query.message.toString('latin1', 2);
		const known = this.#inFlight.get(key);
		const {mostInFlight} = this.#deps.settings;
		if (known ? known.waiters.length >= mostWaiters : this.#inFlight.size >= mostInFlight) {
			this.#count('overload');
			respond(replyError(query, rcode.servFail, extendedError.other));
			return;
		}
		const waiter = {query, limit, respond};
		this.#waiting++;
		if (known) {
			known.waiters.push(waiter);
			return;
		}
		const nowMs = this.#deps.clock.monotonicMs();
		const exchange: Exchange = {
			key,
			query,
			isTcp,
			waiters: [waiter],
			deadlineMs: nowMs + this.#deps.settings.timeoutMs,
			asked: new Set(),
			nextTryMs: nowMs,
			last: undefined,
			tries: 0,
			outstanding: 0,
			lastResort: undefined,
			isDone: false,
		};
		this.#inFlight.set(key, exchange);
		this.#ask(exchange, nowMs);
		this.#startTicking();
	}

	stop(): void {
		this.#stopping.abort();
		for (const exchange of this.#inFlight.values()) this.#fail(exchange, 'servfail');
	}

	#ask(exchange: Exchange, nowMs: number): void {
		const order = this.#deps.order();
		const upstream = order.find(each => !exchange.asked.has(each)) ?? order[exchange.tries % order.length];
		if (!upstream || exchange.tries >= mostTries) {
			if (exchange.outstanding === 0) this.#fail(exchange, 'servfail');
			return;
		}
		const {isTcp, query, deadlineMs} = exchange;
		exchange.asked.add(upstream);
		exchange.last = upstream;
		exchange.tries++;
		exchange.outstanding++;
		exchange.nextTryMs = nowMs + upstream.patienceMs(isTcp, order.length === 1);
		upstream.ask(query.message, query.questionEnd, isTcp, deadlineMs - nowMs, answer => {
			exchange.outstanding--;
			if (!exchange.isDone) this.#settle(exchange, answer);
		});
	}

	#settle(exchange: Exchange, answer: Buffer | undefined): void {
		if (answer && !isFailure(answer[3]! & 0x0f)) {
			this.#finish(exchange, outcomeOf(answer), answer);
			return;
		}
		exchange.lastResort ??= answer;
		const isUnasked = this.#deps.order().some(upstream => !exchange.asked.has(upstream));
		if (isUnasked) this.#ask(exchange, this.#deps.clock.monotonicMs());
		else if (exchange.outstanding === 0) this.#fail(exchange, 'servfail');
	}

	#fail(exchange: Exchange, outcome: Outcome): void {
		const {lastResort} = exchange;
		this.#finish(exchange, lastResort ? outcomeOf(lastResort) : outcome, lastResort);
	}

	#finish(exchange: Exchange, outcome: Outcome, answer: Buffer | undefined): void {
		exchange.isDone = true;
		this.#inFlight.delete(exchange.key);
		this.#waiting -= exchange.waiters.length;
		for (const {query, limit, respond} of exchange.waiters) {
			this.#count(outcome);
			respond(
				answer
					? replyForwarded(query, answer, limit)
					: replyError(query, rcode.servFail, extendedError.noReachableAuthority),
			);
		}
	}

	#startTicking(): void {
		if (this.#isTicking) return;
		this.#isTicking = true;
		this.#tick().then(
			() => {
				this.#isTicking = false;
			},
			() => {}, // stopped
		);
	}

	async #tick(): Promise<void> {
		const {clock, order} = this.#deps;
		while (this.#inFlight.size > 0) {
			await clock.sleep(tickMs, this.#stopping.signal);
			const nowMs = clock.monotonicMs();
			for (const exchange of this.#inFlight.values()) {
				if (nowMs >= exchange.deadlineMs) this.#fail(exchange, 'timeout');
				else if (nowMs >= exchange.nextTryMs && exchange.tries < mostTries) {
					if (order().length > 1) exchange.last?.strike();
					this.#ask(exchange, nowMs);
				}
			}
		}
	}

	#count(outcome: Outcome): void {
		this.#deps.tally.count('upstream', outcome);
	}
}

function outcomeOf(answer: Buffer): Outcome {
	switch (answer[3]! & 0x0f) {
		case rcode.noError:
			return answer[6] === 0 && answer[7] === 0 ? 'nodata' : 'answered';
		case rcode.nxDomain:
			return 'nxdomain';
		case rcode.formErr:
			return 'formerr';
		case rcode.refused:
			return 'refused';
		default:
			return 'servfail';
	}
}
