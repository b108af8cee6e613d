import {setImmediate as nextTurn} from 'node:timers/promises';
import type {ServerDuplexStream} from '@grpc/grpc-js';
import type {Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {isWildcardType, shortType, typeUrl} from '../proto/types.ts';
import {type Cache, type CachedResource, type Change, versionOf} from './cache.ts';
import {
	type AnswerBuilder,
	buildDelta,
	buildSotw,
	type ErrorDetail,
	parseDeltaRequest,
	parseSotwRequest,
	type Request,
	type Response,
} from './envelope.ts';
import {parseNodeExtensions} from './extensions.ts';
import {Refusals} from './refusals.ts';
import {createRewriter, type Removal, type Rewriter} from './rewrite.ts';
import {forget, isWanted, sendOrder, type TypeState} from './type-state.ts';

export type DownstreamProtocol = 'delta' | 'sotw';

/** What a session tells the relay. */
export interface SessionEvents {
	/** Envoy wants these names of a type that is asked for by name. */
	onSubscribe(url: string, names: readonly string[]): void;
	onUnsubscribe(url: string, names: readonly string[]): void;
	/** Envoy took, or refused, everything up to the answer with this upstream nonce. */
	onAnswered(url: string, upstreamNonce: string | undefined, error: ErrorDetail | undefined): void;
	onRemoval(removal: Removal): void;
}

export interface SessionDeps extends SessionEvents {
	readonly protocol: DownstreamProtocol;
	readonly call: ServerDuplexStream<Buffer, Buffer>;
	readonly cache: Cache;
	/** Latest answer of the control plane of this type that is not acknowledged yet. */
	readonly upstreamNonce: (url: string) => string | undefined;
	readonly removeUnknownExtensions: 'auto' | 'never';
	readonly clock: Clock;
	readonly log: Logger;
}

/**
 * Envoy takes what it gets at once but says so only when its clusters are warm, which may take a minute where a name
 * does not resolve. So long an answer is waited for, that what changes meanwhile goes in one; then the next is sent.
 */
const patienceMs = 1000;
/** From so many on, for longer: what comes then is for a warming that lasts, or for an Envoy that is stuck. */
const manyOutstanding = 16;
const longPatienceMs = 5000;

/** Resources handled before other work gets a turn: about a millisecond's worth. */
const resourcesPerTurn = 200;

/**
 * One ADS stream of one Envoy. It compares what Envoy holds with the cache and sends the difference, one answer per
 * type at a time; what changes meanwhile is sent together once Envoy has answered, or has taken too long to. An Envoy that
 * does not read costs no memory.
 */
export class Session {
	readonly #deps: SessionDeps;
	readonly #types = new Map<string, TypeState>();
	/** Endpoints that changed clusters wait for, while Envoy has not asked for any on this stream. */
	readonly #owedEndpoints = new Set<string>();
	#rewriter: Rewriter | undefined;
	#nonce = 0;
	#isFlushing = false;
	#isClosed = false;
	#isBlocked = false;
	readonly #closing = new AbortController();

	constructor(deps: SessionDeps) {
		this.#deps = deps;
		const {call} = deps;
		call.on('data', (message: Buffer) => this.#receive(message));
		call.on('drain', () => {
			this.#isBlocked = false;
			void this.#flush();
		});
	}

	get isClosed(): boolean {
		return this.#isClosed;
	}

	/** Whether Envoy has asked for this type on this stream. */
	watches(url: string): boolean {
		return this.#types.has(url);
	}

	/** Whether Envoy has asked for this name, of a type that is asked for by name. */
	isSubscribed(url: string, name: string): boolean {
		const state = this.#types.get(url);
		return state !== undefined && !state.isWildcard && state.held.has(name);
	}

	/**
	 * Takes note of a change in the cache. Returns false when it means nothing to this Envoy, so that the control
	 * plane need not wait for an answer that will not come.
	 */
	update(url: string, {changed, removed, confirmed}: Change, isComplete: boolean): boolean {
		const state = this.#types.get(url);
		if (!state) return false;
		if (state.isAllDirty && isComplete) {
			void this.#flush();
			return true;
		}
		let isConcerned = false;
		for (const {name} of changed) {
			if (!isWanted(state, name)) continue;
			state.dirty.add(name);
			state.gone.delete(name);
			isConcerned = true;
		}
		for (const {name} of confirmed) {
			if (!state.deferred.delete(name)) continue;
			state.dirty.add(name);
			isConcerned = true;
		}
		for (const {name} of removed) {
			if (state.held.get(name) === undefined) continue;
			state.dirty.add(name);
			state.gone.add(name);
			isConcerned = true;
		}
		if (isConcerned) void this.#flush();
		return isConcerned;
	}

	/** What Envoy still does not have because it refused it, by type. */
	*refusals(): Generator<{readonly url: string; readonly error: ErrorDetail; readonly at: Date}> {
		for (const [url, {refusals}] of this.#types) if (refusals.latest) yield {url, ...refusals.latest};
	}

	/** What Envoy has said of something in this answer, if it is unchanged since and Envoy still refuses it. */
	standingRefusal({typeUrl: url, resources}: Response, {changed}: Change): ErrorDetail | undefined {
		return this.#types.get(url)?.refusals.standing(resources.names, changed);
	}

	/** Whether Envoy has taken, or refused, all there is of clusters and listeners and of what it asked for by name. */
	get isSettled(): boolean {
		if (!this.watches(typeUrl.cluster) || !this.watches(typeUrl.listener)) return false;
		return [...this.#types.values()].every(
			({outstanding, isAllDirty, dirty, deferred}) =>
				outstanding.length === 0 && !isAllDirty && dirty.size === 0 && deferred.size === 0,
		);
	}

	/** Whether it had nothing when it came, and has been given something since. */
	get isFed(): boolean {
		return [...this.#types.values()].some(({isReturning, hasAnswered}) => hasAnswered && !isReturning);
	}

	/** What Envoy has refused of a type, and runs without. */
	refusedNames(url: string): ReadonlySet<string> {
		return this.#types.get(url)?.refusals.names ?? none;
	}

	close(): void {
		this.#isClosed = true;
		this.#closing.abort();
	}

	#receive(message: Buffer): void {
		let request: Request;
		try {
			request = this.#deps.protocol === 'delta' ? parseDeltaRequest(message) : parseSotwRequest(message);
			if (request.node) this.#greet(request.node);
		} catch (err) {
			this.#deps.log.warn({err}, 'envoy sent what is not an xDS request');
			this.#deps.call.destroy(err as Error);
			return;
		}
		const known = this.#types.get(request.typeUrl);
		const state = known ?? this.#createType(request);
		if (request.nonce !== '') this.#settle(request, state);
		if (this.#deps.protocol === 'delta') this.#subscribeDelta(request, state);
		else this.#subscribeSotw(request, state);
		void this.#flush();
	}

	/** The first message names what this Envoy can load. */
	#greet(node: Buffer): void {
		if (this.#rewriter) return;
		const {removeUnknownExtensions, onRemoval, log} = this.#deps;
		this.#rewriter =
			removeUnknownExtensions === 'never'
				? passThrough
				: createRewriter(parseNodeExtensions(node), onRemoval, (resource, reason) =>
						log.warn({resource, reason}, 'resource cannot be read; left as it is, for envoy to judge'),
					);
	}

	#createType({typeUrl: url, subscribe, initialVersions, version}: Request): TypeState {
		const isWildcard = isWildcardType(url) && (subscribe.length === 0 || subscribe.includes('*'));
		const state: TypeState = {
			held: new Map(),
			isWildcard,
			isReturning: initialVersions.size > 0 || version !== '',
			isSurveyed: false,
			deferred: new Set(),
			dirty: new Set(),
			gone: new Set(),
			isAllDirty: isWildcard,
			hasAnswered: false,
			outstanding: [],
			refusals: new Refusals(),
		};
		if (isWildcard) for (const [name, version] of initialVersions) state.held.set(this.#intern(url, name), version);
		this.#types.set(url, state);
		return state;
	}

	/** The cache's own string for a name, so that thousands are not kept twice. */
	#intern(url: string, name: string): string {
		const {cache} = this.#deps;
		const known = cache.type(url).resources.get(name)?.name;
		return known ?? (url === typeUrl.endpoint ? (cache.endpointName(name) ?? name) : name);
	}

	/** ACK or NACK of an answer, and with it of those before; an older nonce is stale and means nothing (xDS protocol, "nonces"). */
	#settle({typeUrl: url, nonce, error}: Request, state: TypeState): void {
		const at = state.outstanding.findIndex(each => each.nonce === nonce);
		if (at < 0) return;
		const before = state.outstanding.splice(0, at);
		const outstanding = state.outstanding.shift()!;
		const {log, clock} = this.#deps;
		for (const {names, upstreamNonce} of before) {
			state.refusals.taken(names);
			this.#deps.onAnswered(url, upstreamNonce, undefined);
		}
		if (error) {
			log.warn({type: shortType(url), code: error.code, reason: error.message}, 'envoy refused an update');
			state.refusals.note(error, outstanding.names, clock.now());
		} else state.refusals.taken(outstanding.names);
		this.#deps.onAnswered(url, outstanding.upstreamNonce, error);
	}

	#subscribeDelta({typeUrl: url, subscribe, unsubscribe, initialVersions}: Request, state: TypeState): void {
		if (state.isWildcard) return;
		for (const name of subscribe) {
			if (!state.held.has(name)) {
				const isOwed = url === typeUrl.endpoint && this.#owedEndpoints.has(name);
				state.held.set(this.#intern(url, name), isOwed ? undefined : initialVersions.get(name));
			}
			// Asked again means "I no longer have it" (xDS: subscribing to a name one is subscribed to resends it).
			else if (state.hasAnswered) state.held.set(name, undefined);
			state.dirty.add(name);
		}
		if (url === typeUrl.endpoint) this.#owedEndpoints.clear();
		// What Envoy has dropped must be answered in full if it is asked for later.
		for (const name of unsubscribe) forget(state, name);
		if (subscribe.length > 0) this.#deps.onSubscribe(url, subscribe);
		if (unsubscribe.length > 0) this.#deps.onUnsubscribe(url, unsubscribe);
	}

	#subscribeSotw({typeUrl: url, subscribe}: Request, state: TypeState): void {
		if (state.isWildcard) return;
		const wanted = new Set(subscribe);
		const added = subscribe.filter(name => !state.held.has(name));
		const dropped = [...state.held.keys()].filter(name => !wanted.has(name));
		for (const name of added) {
			state.held.set(this.#intern(url, name), undefined);
			state.dirty.add(name);
		}
		for (const name of dropped) forget(state, name);
		if (added.length > 0) this.#deps.onSubscribe(url, added);
		if (dropped.length > 0) this.#deps.onUnsubscribe(url, dropped);
	}

	/**
	 * A changed EDS cluster warms until its endpoints come, and delta Envoy does not ask for them again: without this
	 * it warms for as long as its `initial_fetch_timeout` says, and istiod says for ever. To be called when the change
	 * is sent: endpoints that reach Envoy before it are not what the new cluster waits for.
	 */
	#oweEndpoints(clusters: readonly CachedResource[]): void {
		const endpoints = this.#types.get(typeUrl.endpoint);
		for (const {endpointName} of clusters) {
			if (endpointName === undefined) continue;
			if (!endpoints) this.#owedEndpoints.add(endpointName);
			else if (endpoints.held.has(endpointName)) {
				endpoints.held.set(endpointName, undefined);
				endpoints.dirty.add(endpointName);
			}
		}
	}

	async #flush(): Promise<void> {
		if (this.#isFlushing) return;
		this.#isFlushing = true;
		try {
			for (;;) {
				const step = this.#nextStep();
				// In the same turn as the look, or what comes right after it would find nobody.
				if (!step) return;
				await step();
			}
		} catch (err) {
			this.#deps.log.error({err}, 'could not answer envoy');
			this.#deps.call.destroy(err as Error);
		} finally {
			this.#isFlushing = false;
		}
	}

	/**
	 * While nothing newer than the saved configuration is there, a returning Envoy is sent nothing; what another agent has
	 * taken out of what it holds is to be told all the same.
	 */
	#nextSurvey(): string | undefined {
		if (!this.#rewriter) return undefined;
		for (const [url, {isReturning, isAllDirty, isSurveyed}] of this.#types)
			if (isReturning && isAllDirty && !isSurveyed && this.#deps.cache.type(url).isComplete) return url;
		return undefined;
	}

	async #survey(url: string): Promise<void> {
		const state = this.#types.get(url)!;
		const rewriter = this.#rewriter!;
		state.isSurveyed = true;
		let count = 0;
		for (const [name, held] of state.held) {
			if (++count % resourcesPerTurn === 0) await nextTurn();
			if (this.#isClosed) return;
			const resource = this.#deps.cache.type(url).resources.get(name);
			if (resource && held === versionOf(resource.any, rewriter.profile)) rewriter.rewrite(url, name, resource.any);
		}
	}

	#nextStep(): (() => Promise<void>) | undefined {
		const url = this.#nextType();
		if (url !== undefined) return () => this.#send(url, this.#types.get(url)!);
		const surveyed = this.#nextSurvey();
		return surveyed === undefined ? undefined : () => this.#survey(surveyed);
	}

	/** The first type that has something to say and may. */
	#nextType(): string | undefined {
		if (this.#isClosed || this.#isBlocked || !this.#rewriter) return undefined;
		for (const url of sendOrder(this.#types.keys())) {
			const state = this.#types.get(url)!;
			if (this.#mustWait(state)) continue;
			if (state.isAllDirty ? !this.#hasWhole(url, state) : state.dirty.size === 0) continue;
			// Listeners wait for the clusters they may name.
			if (url === typeUrl.listener && this.#hasUnsent(typeUrl.cluster)) continue;
			return url;
		}
		return undefined;
	}

	#mustWait({outstanding}: TypeState): boolean {
		const last = outstanding.at(-1);
		return last !== undefined && !last.isLate;
	}

	#hasWhole(url: string, {isReturning}: TypeState): boolean {
		const {isComplete, isConfirmed} = this.#deps.cache.type(url);
		return isReturning ? isConfirmed : isComplete;
	}

	#hasUnsent(url: string): boolean {
		const state = this.#types.get(url);
		return state !== undefined && (state.isAllDirty || state.dirty.size > 0);
	}

	async #send(url: string, state: TypeState): Promise<void> {
		const {upstreamNonce, call, clock, log} = this.#deps;
		const coveredNonce = upstreamNonce(url);
		const isAll = state.isAllDirty;
		const names = isAll ? this.#everyName(url, state) : state.dirty;
		state.isAllDirty = false;
		state.dirty = new Set();

		const {answer, sent, replaced, removed} = await this.#compose(url, state, names);
		if (this.#isClosed) return;
		const isOwed = state.isWildcard && !state.hasAnswered;
		if (sent.length === 0 && removed.length === 0 && !isOwed) {
			this.#deps.onAnswered(url, coveredNonce, undefined);
			return;
		}
		const nonce = String(++this.#nonce);
		const message = answer.finish(url, nonce, removed);
		if (url === typeUrl.cluster) this.#oweEndpoints(replaced);
		const outstanding = {nonce, upstreamNonce: coveredNonce, names: [...sent, ...removed], isLate: false};
		state.outstanding.push(outstanding);
		const patience = state.outstanding.length < manyOutstanding ? patienceMs : longPatienceMs;
		clock.sleep(patience, this.#closing.signal).then(
			() => {
				outstanding.isLate = true;
				void this.#flush();
			},
			() => {}, // closed
		);
		state.hasAnswered = true;
		log.debug(
			{type: shortType(url), sent: sent.length, removed: removed.length, all: isAll, bytes: message.length},
			'sent to envoy',
		);
		this.#isBlocked = !call.write(message);
	}

	#everyName(url: string, state: TypeState): string[] {
		const {resources} = this.#deps.cache.type(url);
		const names = [...resources.keys()];
		for (const name of state.held.keys()) if (!resources.has(name)) names.push(name);
		return names;
	}

	/**
	 * Puts what differs into an answer, resource by resource, letting other work in between. What changes meanwhile
	 * is marked dirty again, and so comes with the next answer.
	 */
	async #compose(
		url: string,
		state: TypeState,
		names: Iterable<string>,
	): Promise<{answer: AnswerBuilder; sent: string[]; replaced: CachedResource[]; removed: string[]}> {
		const {protocol, cache} = this.#deps;
		const type = cache.type(url);
		const {resources} = type;
		const {gone} = state;
		state.gone = new Set();
		const removed: string[] = [];
		const updates: CachedResource[] = [];
		let count = 0;
		for (const name of names) {
			if (++count % resourcesPerTurn === 0) await nextTurn();
			if (!isWanted(state, name)) continue;
			const resource = resources.get(name);
			if (resource) {
				if (this.#isHeld(url, resource, state)) continue;
				const isNewer = state.isReturning && typeof state.held.get(name) === 'string';
				if (isNewer && type.isUnconfirmed(name)) state.deferred.add(name);
				else updates.push(resource);
			} else if (state.held.get(name) !== undefined && (state.isWildcard || gone.has(name))) removed.push(name);
		}
		const isChanged = updates.length + removed.length > 0;
		// In state of the world clusters and listeners are sent whole: what is missing is what is removed.
		const isWhole = protocol === 'sotw' && state.isWildcard && (isChanged || !state.hasAnswered);
		const toSend = isWhole ? [...resources.values()] : updates;
		const answer = startAnswer(protocol, toSend);
		const sent: string[] = [];
		const replaced: CachedResource[] = [];
		for (const [index, {name}] of toSend.entries()) {
			if (index % resourcesPerTurn === resourcesPerTurn - 1) await nextTurn();
			// As it is now: it may have been replaced, removed, or no longer be wanted since the last turn.
			const resource = resources.get(name);
			if (!resource || !isWanted(state, name)) continue;
			this.#add(answer, url, resource);
			sent.push(resource.name);
			const before = state.held.get(name);
			if (before !== undefined && before !== resource) replaced.push(resource);
			state.held.set(resource.name, resource);
		}
		for (const name of removed) {
			if (state.isWildcard) state.held.delete(name);
			else if (state.held.has(name)) state.held.set(name, undefined);
		}
		return {answer, sent, replaced, removed};
	}

	/** Whether Envoy has this content; what it got on another stream is compared by version. */
	#isHeld(url: string, resource: CachedResource, state: TypeState): boolean {
		const held = state.held.get(resource.name);
		if (held === resource) return true;
		const rewriter = this.#rewriter!;
		if (typeof held !== 'string' || held !== versionOf(resource.any, rewriter.profile)) return false;
		// For what it tells: another agent took something out, and this one is asked what.
		rewriter.rewrite(url, resource.name, resource.any);
		state.held.set(resource.name, resource);
		return true;
	}

	#add(answer: AnswerBuilder, url: string, resource: CachedResource): void {
		const {name, any} = resource;
		const rewriter = this.#rewriter!;
		answer.add(name, versionOf(any, rewriter.profile), rewriter.rewrite(url, name, any));
	}
}

function startAnswer(protocol: DownstreamProtocol, resources: readonly CachedResource[]): AnswerBuilder {
	let [anyBytes, nameBytes] = [0, 0];
	for (const {name, size} of resources) {
		anyBytes += size;
		nameBytes += name.length;
	}
	const expected = {anyBytes, nameBytes, count: resources.length};
	return protocol === 'delta' ? buildDelta(expected) : buildSotw(expected);
}

const none: ReadonlySet<string> = new Set();

const passThrough: Rewriter = {profile: '', rewrite: (_url, _name, any) => any};
