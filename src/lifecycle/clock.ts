/**
 * Time as the agent sees it. Two clocks on purpose: the wall clock says whether a certificate is valid and may
 * jump; the monotonic clock measures waits and never does, but stands still while the machine is suspended.
 */
export interface Clock {
	/** Wall-clock time. */
	now(): Date;
	/** Milliseconds on a clock that never goes back; only differences mean something. */
	monotonicMs(): number;
	/** Waits on the monotonic clock. Rejects with the signal's reason when it is aborted. */
	sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

/** setTimeout overflows past 2^31-1 ms and then fires at once. */
const longestTimerMs = 2 ** 31 - 1;

export const systemClock: Clock = {
	now: () => new Date(),
	// The same clock as `performance.now()`, whose first use loads a module for a millisecond.
	monotonicMs: () => {
		const [seconds, nanoseconds] = process.hrtime();
		return seconds * 1000 + nanoseconds / 1e6;
	},
	sleep: (ms, signal) =>
		new Promise((resolve, reject) => {
			if (signal?.aborted) {
				reject(signal.reason);
				return;
			}
			const onAbort = () => {
				clearTimeout(timer);
				reject(signal?.reason);
			};
			const timer = setTimeout(
				() => {
					signal?.removeEventListener('abort', onAbort);
					resolve();
				},
				Math.min(Math.max(ms, 0), longestTimerMs),
			);
			signal?.addEventListener('abort', onAbort, {once: true});
		}),
};

/** How often a wall-clock deadline is looked at again; bounds how late a clock step or a resume is noticed. */
const wallCheckMs = 10_000;

/**
 * Waits until the wall clock shows `at`. It looks again every ten seconds, so that a stepped clock or a machine
 * back from suspend does not leave the agent asleep past its deadline.
 */
export async function sleepUntilWall(clock: Clock, at: Date, signal?: AbortSignal): Promise<void> {
	for (;;) {
		const leftMs = at.getTime() - clock.now().getTime();
		if (leftMs <= 0) return;
		await clock.sleep(Math.min(leftMs, wallCheckMs), signal);
	}
}
