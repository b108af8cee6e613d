import {type Clock, never, type Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {type EntryEvidence, type EntryFinding, type EntryProblem, judgeEntry, settledAfterMs} from './entry-finding.ts';

export interface SelfCheck extends Running {
	/** undefined while we are not registered. */
	finding(): EntryFinding | undefined;
	/** Something has changed that it may depend on. */
	look(): void;
	/** What was seen is of another address. */
	forget(): void;
	/** Streams opened anew for a problem that has not gone since. */
	readonly attempts: number;
}

export interface SelfCheckDeps {
	/** As it is now; undefined while we are not registered. */
	readonly evidence: () => Omit<EntryEvidence, 'wasSeen'> | undefined;
	/** Ends the stream to the control plane and opens another. */
	readonly reconnect: () => void;
	/** After a look that found something else. */
	readonly onFinding: () => void;
	readonly clock: Clock;
	/** In [0, 1). */
	readonly random: () => number;
	readonly log: Logger;
}

const patienceFactor = 4;
/** A problem that three streams have not mended is none of the stream's. */
const maxAttempts = 3;

/** Compares what the mesh is told of our entry with what it should be, says what is wrong, and asks anew where that may help. */
export function startSelfCheck({evidence, reconnect, onFinding, clock, random, log}: SelfCheckDeps): SelfCheck {
	const stopping = new AbortController();
	let wasSeen = false;
	let known = '';
	let summary: string | undefined;
	let attempts = 0;
	let mending: AbortController | undefined;
	let settling: AbortController | undefined;

	const finding = (): EntryFinding | undefined => {
		const now = evidence();
		return now && judgeEntry({...now, wasSeen});
	};

	const sleep = (ms: number, then: () => void): AbortController => {
		const timer = new AbortController();
		clock.sleep(ms, AbortSignal.any([timer.signal, stopping.signal])).then(then, () => {
			// Something has changed meanwhile, or we stop.
		});
		return timer;
	};

	const look = (): void => {
		if (stopping.signal.aborted) return;
		const now = evidence();
		if (now?.endpoints.some(({isHealthy}) => isHealthy)) wasSeen = true;
		judge();
		// Much is so only when it has been so for a while.
		settling?.abort();
		settling = now && sleep(settledAfterMs, judge);
	};

	const judge = (): void => {
		const now = finding();
		// Between two streams there is nothing to judge, and what was wrong may still be.
		if (now?.isSettled) compare(now.problems);
		if (now?.summary === summary) return;
		summary = now?.summary;
		onFinding();
	};

	const compare = (problems: readonly EntryProblem[]): void => {
		const names = problems.map(({what}) => what).join('; ');
		if (names === known) return;
		const isMended = names === '' && attempts > 0;
		known = names;
		mending?.abort();
		for (const {what, hint} of problems) log.warn({hint}, what);
		if (isMended) log.info({attempts}, 'the entry is as it should be again');
		if (names === '') attempts = 0;
		if (problems.some(({isMendable}) => isMendable)) mend();
	};

	const mend = (): void => {
		if (attempts >= maxAttempts) {
			// Whatever it was, we cannot mend it; should it come again later, it is something new.
			wasSeen = false;
			return;
		}
		mending = sleep(settledAfterMs * patienceFactor ** attempts * random(), () => {
			// Away: judged again when the stream is back.
			if (!finding()) {
				known = '';
				return;
			}
			attempts++;
			log.warn({attempts}, 'opening a new stream to have the entry put right');
			reconnect();
			mend();
		});
	};

	return {
		finished: never,
		finding,
		look,
		forget: () => {
			wasSeen = false;
			known = '';
			attempts = 0;
			mending?.abort();
		},
		get attempts() {
			return attempts;
		},
		stop: async () => stopping.abort(),
	};
}
