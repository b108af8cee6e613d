import {isIPv6} from 'node:net';
import type {Clock} from '../lifecycle/index.ts';
import {TcpUpstream} from './tcp-upstream.ts';
import {type Settle, UdpUpstream} from './udp-upstream.ts';

export interface ServerAddress {
	readonly address: string;
	readonly port: number;
}

export const labelOf = ({address, port}: ServerAddress): string =>
	`${isIPv6(address.replace(/%.*$/, '')) ? `[${address}]` : address}${port === 53 ? '' : `:${port}`}`;

/** Where questions to this server stand. `loop`: it asks us. */
export type UpstreamState = 'untried' | 'answering' | 'slow' | 'silent' | 'loop';

/** In a row, before others are asked first. */
const mostStrikes = 3;
/** Bounds of how long one server is waited for before the next is asked as well. */
const leastPatienceMs = 50;
const mostPatienceMs = 400;
/** A server slower than this is not asked first, if there is another. */
const slowMs = 350;
/** With one server only, a lost packet is what there is to wait for. */
const alonePatienceMs = 1000;
/** A connection takes a round trip more, and is not lost. */
const tcpPatienceMs = 1000;

/** One server, how to ask it, and how it has been doing. */
export class Upstream {
	readonly server: ServerAddress;
	readonly label: string;
	readonly #clock: Clock;
	readonly #udp: UdpUpstream;
	readonly #tcp: TcpUpstream;
	readonly #onStateChange: () => void;
	#state: UpstreamState = 'untried';
	#strikes = 0;
	#latencyMs: number | undefined;
	asked = 0;
	answered = 0;
	failed = 0;
	latencySumMs = 0;

	constructor(server: ServerAddress, clock: Clock, onStateChange: () => void) {
		this.server = server;
		this.label = labelOf(server);
		this.#clock = clock;
		this.#udp = new UdpUpstream(server.address, server.port, clock.monotonicMs);
		this.#tcp = new TcpUpstream(server.address, server.port);
		this.#onStateChange = onStateChange;
	}

	get state(): UpstreamState {
		return this.#state;
	}

	/** Whether it may be asked before others. */
	get isGood(): boolean {
		return this.#state === 'untried' || this.#state === 'answering';
	}

	/** Smoothed, of answers over UDP. */
	get latencyMs(): number | undefined {
		return this.#latencyMs;
	}

	patienceMs(isTcp: boolean, isAlone: boolean): number {
		if (isTcp) return tcpPatienceMs;
		if (isAlone) return alonePatienceMs;
		if (this.#latencyMs === undefined) return mostPatienceMs;
		return Math.min(mostPatienceMs, Math.max(leastPatienceMs, this.#latencyMs * 4));
	}

	/** @param timeoutMs - after which no answer is expected any more */
	ask(message: Buffer, questionEnd: number, isTcp: boolean, timeoutMs: number, settle: Settle): void {
		const fromMs = this.#clock.monotonicMs();
		this.asked++;
		const asked = {
			message,
			questionEnd,
			expiresMs: fromMs + timeoutMs,
			settle: (answer: Buffer | undefined, why?: 'refused' | 'expired' | 'closed') => {
				if (answer) this.#noteAnswer(this.#clock.monotonicMs() - fromMs, isTcp);
				else if (why !== 'closed') this.#noteFailure(why === 'refused' ? mostStrikes : 1);
				settle(answer, why);
			},
		};
		if (isTcp) this.#tcp.ask(asked);
		else this.#udp.ask(asked);
	}

	/** Another server had to be asked as well. */
	strike(): void {
		this.#strikes++;
		if (this.#strikes >= mostStrikes) this.#become('silent');
	}

	markLoop(): void {
		this.#become('loop');
	}

	/** It asked us once and does so no more. */
	clearLoop(): void {
		if (this.#state === 'loop') this.#become('untried');
	}

	tick(nowMs: number): void {
		this.#udp.tick(nowMs);
		this.#tcp.tick(nowMs);
	}

	get isIdle(): boolean {
		return this.#udp.isIdle && this.#tcp.isIdle;
	}

	close(): void {
		this.#udp.close();
		this.#tcp.close();
	}

	#noteAnswer(tookMs: number, isTcp: boolean): void {
		this.answered++;
		this.latencySumMs += tookMs;
		if (this.#state === 'loop') return;
		// An answer that others had to be asked for is no sign that the next will be in time.
		if (tookMs <= mostPatienceMs || isTcp) this.#strikes = 0;
		if (!isTcp) this.#latencyMs = this.#latencyMs === undefined ? tookMs : this.#latencyMs * 0.8 + tookMs * 0.2;
		if (this.#strikes >= mostStrikes) return;
		this.#become((this.#latencyMs ?? 0) > slowMs ? 'slow' : 'answering');
	}

	#noteFailure(strikes: number): void {
		this.failed++;
		this.#strikes += strikes;
		if (this.#strikes >= mostStrikes && this.#state !== 'loop') this.#become('silent');
	}

	#become(state: UpstreamState): void {
		if (state === this.#state) return;
		// What it did before it was away says nothing of now.
		if (state === 'silent' || state === 'untried') this.#latencyMs = undefined;
		if (state === 'untried') this.#strikes = 0;
		this.#state = state;
		this.#onStateChange();
	}
}
