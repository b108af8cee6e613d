import type {Clock} from '../lifecycle/index.ts';

export interface Limit {
	readonly ms: number;
	readonly clock: Clock;
	/** Ends the work early, with the signal's reason. */
	readonly stopping: AbortSignal;
	/** What to reject with when the time is over. */
	readonly unanswered: () => Error;
}

/**
 * Runs work that may hang, heed its signal or not. Leaves no timer and no listener behind, on the stopping signal
 * least of all, which lives as long as the agent.
 */
export async function within(
	{ms, clock, stopping, unanswered}: Limit,
	work: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
	stopping.throwIfAborted();
	const done = new AbortController();
	const giveUp = new AbortController();
	stopping.addEventListener('abort', () => giveUp.abort(stopping.reason), {signal: done.signal});
	clock.sleep(ms, done.signal).then(
		() => giveUp.abort(unanswered()),
		() => {}, // answered in time
	);
	const aborted = new Promise<never>((_, reject) => {
		giveUp.signal.addEventListener('abort', () => reject(giveUp.signal.reason), {signal: done.signal});
	});
	try {
		await Promise.race([work(giveUp.signal), aborted]);
	} finally {
		done.abort();
	}
}
