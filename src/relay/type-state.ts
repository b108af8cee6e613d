import {typeUrl} from '../proto/types.ts';
import type {CachedResource} from './cache.ts';
import type {Refusals} from './refusals.ts';

/**
 * What Envoy holds of a resource: the very one we sent; the version it came with, if it was sent by another agent or on
 * another stream; undefined when it has asked for the name and got nothing yet.
 */
export type Held = CachedResource | string | undefined;

/** What one Envoy wants and holds of one type, on one stream. */
export interface TypeState {
	/** Of types asked for by name, its keys are the names asked for. */
	readonly held: Map<string, Held>;
	readonly isWildcard: boolean;
	/**
	 * Whether Envoy came with a state of its own. What we have from disk may be older than that, so this Envoy gets
	 * nothing in its place that the control plane has not confirmed.
	 */
	readonly isReturning: boolean;
	/** Names that wait for that. */
	readonly deferred: Set<string>;
	/** What was taken out of what it came with has been told from the saved configuration. */
	isSurveyed: boolean;
	/** Names to look at again. */
	dirty: Set<string>;
	/**
	 * Of types asked for by name: what the control plane said is gone. A name merely absent from the cache may not
	 * have been fetched yet.
	 */
	gone: Set<string>;
	/** Everything is to be looked at, as after a (re)connect. */
	isAllDirty: boolean;
	/** Whether anything was answered on this stream: Envoy waits for the first answer even if it is empty. */
	hasAnswered: boolean;
	/** Answers that Envoy has not said anything to, oldest first. */
	outstanding: Outstanding[];
	readonly refusals: Refusals;
}

/** An answer that Envoy has not said anything to. */
export interface Outstanding {
	readonly nonce: string;
	readonly upstreamNonce: string | undefined;
	readonly names: readonly string[];
	/** It was waited for long enough. */
	isLate: boolean;
}

export const isWanted = (state: TypeState, name: string): boolean => state.isWildcard || state.held.has(name);

/** Envoy has dropped the name. */
export function forget(state: TypeState, name: string): void {
	state.held.delete(name);
	state.dirty.delete(name);
	state.deferred.delete(name);
	state.refusals.taken([name]);
}

/** Make before break: what is used comes before what uses it. */
export const makeBeforeBreak = [
	typeUrl.cluster,
	typeUrl.endpoint,
	typeUrl.listener,
	typeUrl.route,
	typeUrl.secret,
	typeUrl.extensionConfig,
] as const;

/** In that order, then the rest. */
export function* sendOrder(urls: Iterable<string>): Generator<string> {
	const left = new Set(urls);
	for (const url of makeBeforeBreak) if (left.delete(url)) yield url;
	yield* left;
}
