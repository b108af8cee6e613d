/** A time in which requests may fail, and why. Milliseconds of performance.now(), as everywhere here. */
export interface Window {
	readonly cause: string;
	readonly fromMs: number;
	/** Infinity while it lasts. */
	toMs: number;
}

export interface Failure {
	readonly load: string;
	readonly startedMs: number;
	readonly endedMs: number;
	readonly reason: string;
}

/** Which requests failed, and which of them had a stated cause. */
export class Ledger {
	readonly #windows: Window[] = [];
	readonly #failures: Failure[] = [];

	/** From now, or from a moment that has passed, until `close`. */
	open(cause: string, fromMs = performance.now()): Window {
		const window: Window = {cause, fromMs, toMs: Number.POSITIVE_INFINITY};
		this.#windows.push(window);
		return window;
	}

	close(window: Window): void {
		window.toMs = performance.now();
	}

	note(failure: Failure): void {
		this.#failures.push(failure);
	}

	get failures(): readonly Failure[] {
		return this.#failures;
	}

	/** The cause of a request that was under way at some time of its window. */
	causeOf({startedMs, endedMs}: Failure): string | undefined {
		return this.#windows.find(({fromMs, toMs}) => startedMs <= toMs && endedMs >= fromMs)?.cause;
	}

	unexplained(): readonly Failure[] {
		return this.#failures.filter(failure => this.causeOf(failure) === undefined);
	}

	/** Cause → windows, failures in them, and the longest window. */
	byCause(): ReadonlyMap<string, {windows: number; failed: number; longestMs: number}> {
		const causes = new Map<string, {windows: number; failed: number; longestMs: number}>();
		const of = (cause: string) => {
			const found = causes.get(cause) ?? {windows: 0, failed: 0, longestMs: 0};
			causes.set(cause, found);
			return found;
		};
		for (const {cause, fromMs, toMs} of this.#windows) {
			const figures = of(cause);
			figures.windows++;
			figures.longestMs = Math.max(figures.longestMs, Math.min(toMs, performance.now()) - fromMs);
		}
		for (const failure of this.#failures) {
			const cause = this.causeOf(failure);
			if (cause !== undefined) of(cause).failed++;
		}
		return causes;
	}
}
