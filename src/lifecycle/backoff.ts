import type {Clock} from './clock.ts';

export interface BackoffSettings {
	/** Upper bound of the first wait. */
	readonly baseMs: number;
	/** Upper bound of every wait. */
	readonly maxMs: number;
	/** A good run of this length makes the next failure count as the first. */
	readonly resetAfterMs?: number;
}

/**
 * Full-jitter exponential backoff: each wait is uniform between 0 and a bound that doubles up to `maxMs`, so a
 * fleet cut off together does not come back together.
 * @param random - in [0, 1)
 */
export function backoffDelayMs(attempt: number, {baseMs, maxMs}: BackoffSettings, random: number): number {
	return Math.round(random * Math.min(maxMs, baseMs * 2 ** Math.min(attempt, 30)));
}

/** Counts failures and says how long to wait; starts anew after a long good run. */
export class Backoff {
	readonly #settings: BackoffSettings;
	readonly #clock: Clock;
	readonly #random: () => number;
	#attempt = 0;
	#lastFailureMs: number | undefined;

	constructor(settings: BackoffSettings, clock: Clock, random: () => number) {
		this.#settings = settings;
		this.#clock = clock;
		this.#random = random;
	}

	/** Failures since the last reset. */
	get attempts(): number {
		return this.#attempt;
	}

	reset(): void {
		this.#attempt = 0;
	}

	/** The next wait is bounded by this, or less if it would be anyway. */
	easeTo(boundMs: number): void {
		while (this.#attempt > 0 && this.#settings.baseMs * 2 ** this.#attempt > boundMs) this.#attempt--;
	}

	/** Notes a failure and returns the wait before the next try. */
	nextDelayMs(): number {
		const nowMs = this.#clock.monotonicMs();
		const resetAfterMs = this.#settings.resetAfterMs ?? Number.POSITIVE_INFINITY;
		if (this.#lastFailureMs !== undefined && nowMs - this.#lastFailureMs > resetAfterMs) this.#attempt = 0;
		this.#lastFailureMs = nowMs;
		return backoffDelayMs(this.#attempt++, this.#settings, this.#random());
	}
}
