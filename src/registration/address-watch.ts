import type {Clock, Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';

export interface AddressWatchDeps {
	/** This machine's addresses now, best first. */
	readonly look: () => readonly string[];
	/** Those we are known by. */
	readonly current: () => readonly string[];
	/** The first one is another. The next look follows when this is done. */
	readonly onChange: (addresses: readonly string[]) => Promise<void>;
	readonly clock: Clock;
	readonly log: Logger;
}

/**
 * Asking the kernel takes a tenth of a millisecond. A listener on netlink would hear sooner, but needs a child, which outlives an agent
 * that is killed.
 */
const lookEveryMs = 2000;

/**
 * Notices that the address that names our WorkloadEntry is another one. Two looks must agree: a lease that is renewed
 * may be gone for a moment. A machine that has lost all its addresses is still known by the one it had.
 */
export function startAddressWatch({look, current, onChange, clock, log}: AddressWatchDeps): Running {
	const stopping = new AbortController();
	const {signal} = stopping;
	const watch = async (): Promise<void> => {
		let before: string | undefined;
		for (;;) {
			await clock.sleep(lookEveryMs, signal);
			const now = look();
			const [first] = now;
			const isOther = first !== undefined && first !== '127.0.0.1' && first !== current()[0];
			if (isOther && first === before) {
				log.warn({from: current()[0], to: first}, 'the address of this machine has changed: registering anew');
				await onChange(now);
			}
			before = isOther ? first : undefined;
		}
	};
	const finished = watch().catch((error: unknown) => {
		if (!signal.aborted) throw error;
	});
	return {
		finished,
		stop: async () => {
			stopping.abort();
			await finished;
		},
	};
}
