import type {ProbeConfig} from '../config/types.ts';
import type {Clock, Running} from '../lifecycle/index.ts';
import {describeCheck, type Outcome, runCheck} from './check.ts';
import {count, nothing, type Tally, type Verdict} from './tally.ts';

export interface ProbeStatus {
	readonly name: string;
	readonly check: string;
	readonly verdict: Verdict;
	/** Results of the same kind in a row. */
	readonly streak: number;
	/** Why the last one failed. */
	readonly failure: string | undefined;
	readonly lastAt: Date | undefined;
	readonly tookMs: number | undefined;
}

export interface Prober extends Running {
	status(): ProbeStatus;
}

export interface ProberDeps {
	readonly probe: ProbeConfig;
	/** Host when the probe names none. */
	readonly host: () => string;
	/** After each result. */
	readonly onResult: (outcome: Outcome) => void;
	readonly clock: Clock;
	readonly run?: typeof runCheck;
}

/** Asks again and again: the first time after the initial delay, then each period, and never twice at one time. */
export function startProber({probe, host, onResult, clock, run = runCheck}: ProberDeps): Prober {
	const stopping = new AbortController();
	const {signal} = stopping;
	let tally: Tally = nothing;
	let isUnderWay = false;
	let last: {readonly outcome: Outcome; readonly at: Date; readonly tookMs: number} | undefined;
	const probing = async (): Promise<void> => {
		await clock.sleep(probe.initialDelayMs, signal);
		for (;;) {
			const startedMs = clock.monotonicMs();
			let outcome: Outcome = 'the one before has not ended yet';
			if (!isUnderWay) {
				isUnderWay = true;
				const result = await run(probe.check, host(), probe.timeoutMs, clock, signal);
				({outcome} = result);
				const release = () => {
					isUnderWay = false;
				};
				result.ended.then(release, release);
			}
			signal.throwIfAborted();
			const tookMs = Math.round(clock.monotonicMs() - startedMs);
			tally = count(tally, outcome === undefined, probe);
			last = {outcome, at: clock.now(), tookMs};
			onResult(outcome);
			await clock.sleep(Math.max(0, startedMs + probe.periodMs - clock.monotonicMs()), signal);
		}
	};
	const finished = probing().catch((error: unknown) => {
		if (!signal.aborted) throw error;
	});
	return {
		finished,
		status: () => ({
			name: probe.name,
			check: describeCheck(probe.check, host()),
			verdict: tally.verdict,
			streak: tally.streak,
			failure: last?.outcome,
			lastAt: last?.at,
			tookMs: last?.tookMs,
		}),
		stop: async () => {
			stopping.abort();
			await finished;
		},
	};
}
