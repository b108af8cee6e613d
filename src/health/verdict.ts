import type {HealthConfig} from '../config/types.ts';
import type {ProbeStatus} from './prober.ts';
import type {Word} from './word.ts';

/** All that health depends on. */
export interface Evidence {
	readonly mode: HealthConfig['mode'];
	readonly word: Word | undefined;
	/** Why Envoy cannot take traffic, for long enough to count; undefined = it can. `unknown`: not yet known. */
	readonly proxy: {readonly state: 'ready' | 'unknown'} | {readonly state: 'unready'; readonly reason: string};
	readonly probes: readonly Pick<ProbeStatus, 'name' | 'verdict' | 'failure'>[];
}

export type Finding =
	| {readonly state: 'healthy'}
	| {readonly state: 'unhealthy'; readonly reason: string}
	/** Nothing is to be said yet. */
	| {readonly state: 'unknown'; readonly reason: string};

/** Pure. What people have said counts first, then Envoy, without which nothing arrives, then the application. */
export function decide({mode, word, proxy, probes}: Evidence): Finding {
	if (word?.said === 'unready') return {state: 'unhealthy', reason: `maintenance${word.reason && `: ${word.reason}`}`};
	if (mode === 'manual' && word === undefined)
		return {state: 'unhealthy', reason: 'the application has not said that it is ready'};
	if (proxy.state === 'unready') return {state: 'unhealthy', reason: proxy.reason};
	const failed = probes.filter(({verdict}) => verdict === 'unhealthy');
	if (failed.length > 0)
		return {state: 'unhealthy', reason: failed.map(({name, failure}) => `${name}: ${failure ?? 'failed'}`).join('; ')};
	const waiting = probes.filter(({verdict}) => verdict === 'unknown').map(({name}) => name);
	if (proxy.state === 'unknown') waiting.unshift('Envoy');
	if (waiting.length > 0) return {state: 'unknown', reason: `waiting for ${waiting.join(', ')}`};
	return {state: 'healthy'};
}
