import type {Clock, Running} from '../lifecycle/index.ts';
import {type MonitorCommand, startMonitor} from '../lifecycle/monitor.ts';
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
	/** Default: netlink, as ip(8) prints it. */
	readonly listen?: typeof startMonitor;
}

/** Which address is the best one also hangs on the way to the control plane. */
const monitors: readonly MonitorCommand[] = [['ip', 'monitor', 'address', 'route']];

/** A lease that is renewed may be gone for a moment, and interfaces come up in several steps. */
const agreeAfterMs = 1000;
/** What belongs together is told within this; and a host whose routes never rest is looked at no oftener. */
const settleMs = 100;
/** Where the kernel's word is not heard, because ip(8) is missing or has ended. Looking takes a tenth of a millisecond. */
const lookEveryMs = {heard: 30_000, unheard: 2000};

/**
 * Notices that the address that names our WorkloadEntry is another one: the kernel tells of each change. Two looks must
 * agree. A machine that has lost all its addresses is still known by the one it had.
 */
export function startAddressWatch(deps: AddressWatchDeps): Running {
	const {look, current, onChange, clock, log, listen = startMonitor} = deps;
	const stopping = new AbortController();
	const {signal} = stopping;
	let nudge = new AbortController();
	const watch = async (): Promise<void> => {
		// Nothing of the start waits for it.
		await clock.sleep(lookEveryMs.unheard, signal);
		const monitor = listen(monitors, () => nudge.abort(), clock, signal);
		try {
			for (let before: string | undefined; ; ) {
				const now = look();
				const [first] = now;
				const isOther = first !== undefined && first !== '127.0.0.1' && first !== current()[0];
				if (isOther && first === before) {
					log.warn({from: current()[0], to: first}, 'the address of this machine has changed: registering anew');
					await onChange(now);
				}
				before = isOther ? first : undefined;
				if (isOther) await clock.sleep(agreeAfterMs, signal);
				else await pause(monitor.isListening() ? lookEveryMs.heard : lookEveryMs.unheard);
			}
		} finally {
			monitor.stop();
		}
	};
	/** Ends early when the kernel tells of something. */
	const pause = async (ms: number): Promise<void> => {
		await clock.sleep(ms, AbortSignal.any([signal, nudge.signal])).catch(() => {}); // told
		signal.throwIfAborted();
		if (!nudge.signal.aborted) return;
		await clock.sleep(settleMs, signal);
		nudge = new AbortController();
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
