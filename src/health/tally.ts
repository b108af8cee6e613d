import type {ProbeConfig} from '../config/types.ts';

export type Verdict = 'unknown' | 'healthy' | 'unhealthy';

/** What a probe's results have come to. */
export interface Tally {
	readonly verdict: Verdict;
	/** Results of the same kind in a row, the last included. */
	readonly streak: number;
	readonly isPassing: boolean;
}

export const nothing: Tally = {verdict: 'unknown', streak: 0, isPassing: false};

/** Pure: one result more. A verdict changes when as many results in a row as its threshold says contradict it. */
export function count(
	before: Tally,
	isPassing: boolean,
	{successThreshold, failureThreshold}: Pick<ProbeConfig, 'successThreshold' | 'failureThreshold'>,
): Tally {
	const streak = before.isPassing === isPassing ? before.streak + 1 : 1;
	const isEnough = streak >= (isPassing ? successThreshold : failureThreshold);
	return {verdict: isEnough ? (isPassing ? 'healthy' : 'unhealthy') : before.verdict, streak, isPassing};
}
