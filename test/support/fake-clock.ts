import type {Clock} from '../../src/lifecycle/index.ts';

interface Sleeper {
	readonly atMs: number;
	readonly wake: () => void;
}

/** A clock that moves only when told, so that tests of hours take no time. */
export class FakeClock implements Clock {
	#wallMs: number;
	#monotonicMs = 0;
	#sleepers: Sleeper[] = [];

	constructor(start: Date | string = '2030-01-01T00:00:00Z') {
		this.#wallMs = new Date(start).getTime();
	}

	now(): Date {
		return new Date(this.#wallMs);
	}

	monotonicMs(): number {
		return this.#monotonicMs;
	}

	/** How many are asleep. */
	get sleeping(): number {
		return this.#sleepers.length;
	}

	sleep(ms: number, signal?: AbortSignal): Promise<void> {
		return new Promise((resolve, reject) => {
			if (signal?.aborted) {
				reject(signal.reason);
				return;
			}
			const onAbort = () => {
				this.#sleepers = this.#sleepers.filter(other => other !== sleeper);
				reject(signal?.reason);
			};
			const wake = () => {
				signal?.removeEventListener('abort', onAbort);
				resolve();
			};
			const sleeper = {atMs: this.#monotonicMs + Math.max(ms, 0), wake};
			this.#sleepers.push(sleeper);
			signal?.addEventListener('abort', onAbort, {once: true});
		});
	}

	/** Lets time pass on both clocks. Sleepers wake in order, each with the clocks at its time, and run until they wait. */
	async advance(ms: number): Promise<void> {
		const endMs = this.#monotonicMs + ms;
		await settle();
		for (;;) {
			const next = this.#sleepers.filter(({atMs}) => atMs <= endMs).sort((a, b) => a.atMs - b.atMs)[0];
			if (!next) break;
			this.#sleepers = this.#sleepers.filter(sleeper => sleeper !== next);
			this.#move(Math.max(next.atMs - this.#monotonicMs, 0));
			next.wake();
			await settle();
		}
		this.#move(endMs - this.#monotonicMs);
		await settle();
	}

	/** Sets the wall clock forward or back, as an administrator, NTP or a resume does; no waiting time passes. */
	step(ms: number): void {
		this.#wallMs += ms;
	}

	#move(ms: number): void {
		this.#monotonicMs += ms;
		this.#wallMs += ms;
	}
}

/**
 * Lets everything run that waits only for promises and files. What takes longer, such as making a key, is to be waited
 * for by its result.
 */
async function settle(): Promise<void> {
	for (let quiet = 0; quiet < 5; quiet++) {
		await new Promise(resolve => setImmediate(resolve));
		if (process.getActiveResourcesInfo().some(name => name === 'FSReqPromise' || name === 'CloseReq')) quiet = 0;
	}
}
