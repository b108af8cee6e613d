import {setImmediate as nextTurn} from 'node:timers/promises';
import type {ServerDuplexStream} from '@grpc/grpc-js';
import type {Logger} from '../log.ts';
import {isWildcardType, shortType, typeUrl} from '../proto/types.ts';
import type {Cache, CachedResource, Change} from './cache.ts';
import {
	DeltaResponseBuilder,
	type ErrorDetail,
	parseDeltaRequest,
	parseSotwRequest,
	type Request,
	SotwResponseBuilder,
} from './envelope.ts';
import {parseNodeExtensions} from './extensions.ts';
import {createRewriter, type Removal, type Rewriter} from './rewrite.ts';

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
	readonly log: Logger;
}

interface TypeState {
	/** Names asked for; meaningless for wildcard types. */
	readonly subscribed: Set<string>;
	readonly isWildcard: boolean;
	/** What Envoy holds of us: name → version. */
	readonly sent: Map<string, string>;
	/** Names to look at again. */
	readonly dirty: Set<string>;
	/**
	 * Of types asked for by name: what the control plane said is gone. A name merely absent from the cache may not
	 * have been fetched yet.
	 */
	readonly gone: Set<string>;
	/** Everything is to be looked at, as after a (re)connect. */
	isAllDirty: boolean;
	/** Whether anything was answered on this stream: Envoy waits for the first answer even if it is empty. */
	hasAnswered: boolean;
	outstanding: {nonce: string; upstreamNonce: string | undefined} | undefined;
}

/** Resources handled before other work gets a turn: about a millisecond's worth. */
const resourcesPerTurn = 200;

/**
 * One ADS stream of one Envoy. It compares what Envoy holds with the cache and sends the difference, one answer per
 * type at a time; what changes meanwhile is sent together once Envoy has answered, so a slow Envoy costs no memory.
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

	/** Names of a type Envoy has asked for by name. */
	subscribedTo(url: string): ReadonlySet<string> {
		return this.#types.get(url)?.subscribed ?? new Set();
	}

	/**
	 * Takes note of a change in the cache. Returns false when it means nothing to this Envoy, so that the control
	 * plane need not wait for an answer that will not come.
	 */
	update(url: string, {changed, removed}: Change, isComplete: boolean): boolean {
		const state = this.#types.get(url);
		if (!state) return false;
		if (state.isAllDirty && isComplete) {
			void this.#flush();
			return true;
		}
		let isConcerned = false;
		for (const name of changed) {
			if (!state.isWildcard && !state.subscribed.has(name)) continue;
			state.dirty.add(name);
			state.gone.delete(name);
			isConcerned = true;
		}
		for (const name of removed) {
			if (!state.sent.has(name)) continue;
			state.dirty.add(name);
			state.gone.add(name);
			isConcerned = true;
		}
		if (isConcerned) void this.#flush();
		return isConcerned;
	}

	close(): void {
		this.#isClosed = true;
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

	#createType({typeUrl: url, subscribe, initialVersions}: Request): TypeState {
		const isWildcard = isWildcardType(url) && (subscribe.length === 0 || subscribe.includes('*'));
		const state: TypeState = {
			subscribed: new Set(),
			isWildcard,
			sent: new Map(initialVersions),
			dirty: new Set(),
			gone: new Set(),
			isAllDirty: isWildcard,
			hasAnswered: false,
			outstanding: undefined,
		};
		if (url === typeUrl.endpoint) {
			for (const name of this.#owedEndpoints) state.sent.delete(name);
			this.#owedEndpoints.clear();
		}
		this.#types.set(url, state);
		return state;
	}

	/** ACK or NACK of our latest answer; an older nonce is stale and means nothing (xDS protocol, "nonces"). */
	#settle({typeUrl: url, nonce, error}: Request, state: TypeState): void {
		const {outstanding} = state;
		if (!outstanding || outstanding.nonce !== nonce) return;
		state.outstanding = undefined;
		if (error)
			this.#deps.log.warn({type: shortType(url), code: error.code, reason: error.message}, 'envoy refused an update');
		this.#deps.onAnswered(url, outstanding.upstreamNonce, error);
	}

	#subscribeDelta({typeUrl: url, subscribe, unsubscribe}: Request, state: TypeState): void {
		if (state.isWildcard) return;
		for (const name of subscribe) {
			state.subscribed.add(name);
			// Asked again means "I no longer have it" (xDS: subscribing to a name one is subscribed to resends it).
			if (state.hasAnswered) state.sent.delete(name);
			state.dirty.add(name);
		}
		for (const name of unsubscribe) {
			state.subscribed.delete(name);
			// Envoy has dropped it; a later subscription must be answered in full.
			state.sent.delete(name);
			state.dirty.delete(name);
		}
		if (subscribe.length > 0) this.#deps.onSubscribe(url, subscribe);
		if (unsubscribe.length > 0) this.#deps.onUnsubscribe(url, unsubscribe);
	}

	#subscribeSotw({typeUrl: url, subscribe}: Request, state: TypeState): void {
		if (state.isWildcard) return;
		const wanted = new Set(subscribe);
		const added = subscribe.filter(name => !state.subscribed.has(name));
		const dropped = [...state.subscribed].filter(name => !wanted.has(name));
		for (const name of added) {
			state.subscribed.add(name);
			state.dirty.add(name);
		}
		for (const name of dropped) {
			state.subscribed.delete(name);
			state.sent.delete(name);
			state.dirty.delete(name);
		}
		if (added.length > 0) this.#deps.onSubscribe(url, added);
		if (dropped.length > 0) this.#deps.onUnsubscribe(url, dropped);
	}

	/**
	 * A changed EDS cluster warms until its endpoints come, and delta Envoy does not ask for them again: without this
	 * it warms for as long as its `initial_fetch_timeout` says, and istiod says for ever. To be called when the change
	 * is sent: endpoints that reach Envoy before it are not what the new cluster waits for.
	 */
	#oweEndpoints(clusters: readonly string[]): void {
		const endpoints = this.#types.get(typeUrl.endpoint);
		for (const cluster of clusters) {
			const name = this.#deps.cache.endpointName(cluster);
			if (name === undefined) continue;
			if (!endpoints) this.#owedEndpoints.add(name);
			else if (endpoints.subscribed.has(name)) {
				endpoints.sent.delete(name);
				endpoints.dirty.add(name);
			}
		}
	}

	async #flush(): Promise<void> {
		if (this.#isFlushing) return;
		this.#isFlushing = true;
		try {
			for (;;) {
				const url = this.#nextType();
				if (url === undefined) return;
				await this.#send(url, this.#types.get(url)!);
			}
		} catch (err) {
			this.#deps.log.error({err}, 'could not answer envoy');
			this.#deps.call.destroy(err as Error);
		} finally {
			this.#isFlushing = false;
		}
	}

	/** The first type that has something to say and may. */
	#nextType(): string | undefined {
		if (this.#isClosed || this.#isBlocked || !this.#rewriter) return undefined;
		for (const url of sendOrder(this.#types.keys())) {
			const state = this.#types.get(url)!;
			if (state.outstanding) continue;
			if (state.isAllDirty ? !this.#deps.cache.type(url).isComplete : state.dirty.size === 0) continue;
			// Listeners wait for the clusters they may name.
			if (url === typeUrl.listener && this.#hasUnsent(typeUrl.cluster)) continue;
			return url;
		}
		return undefined;
	}

	#hasUnsent(url: string): boolean {
		const state = this.#types.get(url);
		return state !== undefined && (state.isAllDirty || state.dirty.size > 0);
	}

	async #send(url: string, state: TypeState): Promise<void> {
		const {cache, upstreamNonce} = this.#deps;
		const resources = cache.type(url).resources;
		const rewriter = this.#rewriter!;
		const coveredNonce = upstreamNonce(url);
		const names = state.isAllDirty ? new Set([...resources.keys(), ...state.sent.keys()]) : new Set(state.dirty);
		const isAll = state.isAllDirty;
		state.isAllDirty = false;
		state.dirty.clear();

		const updates: [CachedResource, string][] = [];
		const removed: string[] = [];
		let count = 0;
		for (const name of names) {
			if (++count % resourcesPerTurn === 0) await nextTurn();
			const resource = resources.get(name);
			if (resource) {
				const version = resource.versionFor(rewriter);
				if (state.sent.get(name) !== version) updates.push([resource, version]);
				// Also here, so that the work of rewriting is spread over turns.
				resource.bytesFor(rewriter, url);
			} else if (state.sent.has(name) && (state.isWildcard || state.gone.has(name))) removed.push(name);
		}
		state.gone.clear();
		if (this.#isClosed) return;
		const isOwed = state.isWildcard && !state.hasAnswered;
		if (updates.length === 0 && removed.length === 0 && !isOwed) {
			this.#deps.onAnswered(url, coveredNonce, undefined);
			return;
		}
		const nonce = String(++this.#nonce);
		const message =
			this.#deps.protocol === 'delta'
				? this.#buildDelta(url, nonce, updates, removed)
				: this.#buildSotw(url, nonce, state, updates);
		if (url === typeUrl.cluster)
			this.#oweEndpoints(updates.map(([{name}]) => name).filter(name => state.sent.has(name)));
		for (const [resource, version] of updates) state.sent.set(resource.name, version);
		for (const name of removed) state.sent.delete(name);
		state.outstanding = {nonce, upstreamNonce: coveredNonce};
		state.hasAnswered = true;
		this.#deps.log.debug(
			{type: shortType(url), sent: updates.length, removed: removed.length, all: isAll, bytes: message.length},
			'sent to envoy',
		);
		this.#isBlocked = !this.#deps.call.write(message);
	}

	#buildDelta(
		url: string,
		nonce: string,
		updates: readonly [CachedResource, string][],
		removed: readonly string[],
	): Buffer {
		const response = new DeltaResponseBuilder();
		for (const [resource, version] of updates)
			response.add(resource.name, version, resource.bytesFor(this.#rewriter!, url));
		return response.finish(url, nonce, removed);
	}

	/** Clusters and listeners are always sent whole: what is missing is what is removed. Other types may be sent in part. */
	#buildSotw(url: string, nonce: string, state: TypeState, updates: readonly [CachedResource, string][]): Buffer {
		const response = new SotwResponseBuilder();
		const all = state.isWildcard
			? this.#deps.cache.type(url).resources.values()
			: updates.map(([resource]) => resource);
		for (const resource of all) response.add(resource.bytesFor(this.#rewriter!, url));
		return response.finish(url, nonce, nonce);
	}
}

const passThrough: Rewriter = {profile: '', rewrite: (_url, _name, any) => any};

const preferred = [
	typeUrl.cluster,
	typeUrl.endpoint,
	typeUrl.listener,
	typeUrl.route,
	typeUrl.secret,
	typeUrl.extensionConfig,
] as const;

/** Make before break: clusters, endpoints, listeners, routes, then the rest. */
function* sendOrder(urls: Iterable<string>): Generator<string> {
	const left = new Set(urls);
	for (const url of preferred) if (left.delete(url)) yield url;
	yield* left;
}
