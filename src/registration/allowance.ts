import type {Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';

/** As many as the two who mend may ask for at one cause. */
const most = 6;
const perMs = 300_000;

/**
 * Opens new streams to mend what is wrong, though not for ever: where two machines have one address, each that mends
 * its side breaks the other's.
 */
export function limitReconnects(reconnect: () => void, clock: Clock, log: Logger): () => void {
	let opened: readonly number[] = [];
	let isToldOf = false;
	return () => {
		const nowMs = clock.monotonicMs();
		opened = opened.filter(atMs => nowMs - atMs < perMs);
		if (opened.length < most) {
			opened = [...opened, nowMs];
			isToldOf = false;
			reconnect();
		} else if (!isToldOf) {
			isToldOf = true;
			log.warn(
				{hint: 'two machines with one address do this to each other; onramp status shows what is wrong'},
				`no new stream: ${most} within ${perMs / 60_000} min have not put the entry right`,
			);
		}
	};
}
