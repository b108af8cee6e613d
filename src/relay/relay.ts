import type {ServerDuplexStream, ServiceDefinition, UntypedServiceImplementation} from '@grpc/grpc-js';
import type {RelayConfig} from '../config/types.ts';
import {saysNo} from '../control-plane/refusals.ts';
import type {Clock, Gate, Metrics, Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {shortType, typeUrl} from '../proto/types.ts';
import {Cache, type Change} from './cache.ts';
import type {ErrorDetail, Response} from './envelope.ts';
import {listRemoteCode, type RemoteCode} from './remote-code.ts';
import type {Removal} from './rewrite.ts';
import {SavedConfiguration} from './saved.ts';
import {type DownstreamProtocol, Session} from './session.ts';
import {Snapshot, type SnapshotStatus} from './snapshot.ts';
import {bodyOf, parseTrustBundle} from './trust-bundle.ts';
import {type HealthReport, Upstream, type UpstreamDeps, type UpstreamStatus} from './upstream.ts';

/** An update that Envoy refused; the text is Envoy's own and names the resources. */
export interface Rejection {
	readonly type: string;
	readonly message: string;
	readonly at: Date;
}

export interface RelayStatus {
	readonly upstream: UpstreamStatus;
	/** Envoys with an open ADS stream. */
	readonly sessions: number;
	readonly resources: Readonly<Record<string, number>>;
	readonly cacheBytes: number;
	/** Latest refusal of each type and Envoy; gone once that Envoy takes something else for all that it refused, or is gone. */
	readonly rejections: readonly Rejection[];
	/** What was taken out because this Envoy lacks it. */
	readonly removals: readonly Removal[];
	/** Wasm filters whose code Envoy has to fetch. */
	readonly remoteCode: readonly RemoteCode[];
	/** The configuration on disk; undefined when none is kept. */
	readonly snapshot: SnapshotStatus | undefined;
	/** Wall-clock time of the saved configuration that is in use until the control plane sends its own. */
	readonly servingSaved: Date | undefined;
}

export interface Relay extends Running {
	/** ADS, for the Unix socket that Envoy connects to. */
	readonly service: {readonly definition: ServiceDefinition; readonly implementation: UntypedServiceImplementation};
	/** A data plane is starting: connect to the control plane without waiting for Envoy's own stream. */
	begin(): void;
	/** Ends the stream to the control plane for good, so that it takes us out of load balancing; Envoy stays connected. */
	leave(): void;
	/** What the control plane has sent under this name, the encoded Any; not to be kept. */
	find(url: string, name: string): Buffer | undefined;
	/** From now on Envoy keeps what it has: it is about to drain, and is not to lose what it serves with before that. */
	hold(): void;
	/** What the workload says of its health; kept and repeated on each new stream. */
	setHealth(report: HealthReport): void;
	retryNow(): void;
	/** Ends the stream to the control plane and opens another; Envoy does not notice. */
	reconnect(): void;
	status(): RelayStatus;
	onChange(listener: () => void): () => void;
}

export interface RelayDeps {
	readonly config: RelayConfig;
	readonly openAdsStream: UpstreamDeps['openAdsStream'];
	readonly backoff: UpstreamDeps['backoff'];
	/** The encoded core.v3.Node that names us to the control plane; asked for each stream anew. */
	readonly node: () => Buffer;
	/** Whose configuration this is, in words: what is saved for somebody else is not used. */
	readonly owner: string;
	/** A new name table, encoded (istio.networking.nds.v1.NameTable). Throws to refuse it. */
	readonly onNameTable?: (table: Buffer) => void;
	/** Roots from the mesh's ProxyConfig, PEM. Throws to refuse them. */
	readonly onTrustBundle?: (rootsPem: readonly string[]) => void;
	/** Sees each answer before it is used. */
	readonly onResponse?: (response: Response, isWhole: boolean) => void;
	readonly gate: Gate;
	readonly clock: Clock;
	readonly random: () => number;
	readonly log: Logger;
	readonly metrics: Metrics;
}

/**
 * With no Envoy for this long the stream to the control plane is closed, so that the VM leaves the mesh instead of
 * drawing traffic that nobody takes. Longer than a restart of Envoy, shorter than people's patience.
 */
const dataPlaneGraceMs = 10_000;

/** An answer of the control plane that it has no acknowledgement for yet. */
interface Pending {
	readonly nonce: string;
	/** What is to be said of it even if Envoy takes all that is new in it: Envoy has refused the rest before. */
	readonly refusal: ErrorDetail | undefined;
}

/** How many distinct removals are remembered for status. */
const maxRemovals = 500;

export function startRelay(deps: RelayDeps): Relay {
	const {config, gate, clock, log, metrics} = deps;
	const cache = new Cache();
	const sessions = new Set<Session>();
	const pending = new Map<string, Pending>();
	const removals = new Map<string, Removal>();
	const listeners = new Set<() => void>();
	let hasLeft = false;
	let isHeld = false;
	let grace = new AbortController();
	let proxyConfig: Buffer | undefined;
	let lastWord: Promise<void> | undefined;
	const snapshot =
		config.snapshotDir === undefined
			? undefined
			: new Snapshot({
					dir: config.snapshotDir,
					owner: deps.owner,
					cache,
					isWanted: (url, name) => upstream.wants(url, name),
					refusedNames: url => new Set([...sessions].flatMap(session => [...session.refusedNames(url)])),
					proxyConfig: () => proxyConfig,
					isSettled,
					clock,
					log,
				});
	const saved = new SavedConfiguration({
		snapshot,
		cache,
		mayBeUsed: () => {
			// A control plane that is there and says no is not overruled: what it once sent is not for this workload any more.
			const {lastError} = upstream.status();
			return !hasLeft && !(lastError && saysNo(lastError.code));
		},
		whyNotNewer,
		onProxyConfig: any => {
			if (proxyConfig) return;
			try {
				deps.onTrustBundle?.(parseTrustBundle(bodyOf(any)));
				proxyConfig = Buffer.from(any);
			} catch (err) {
				// Roots that cannot be read take nothing else away.
				log.warn({err}, 'saved trust bundle is not used');
			}
		},
		onRestored: taken => {
			followEndpoints(taken.get(typeUrl.cluster)!);
			for (const session of sessions)
				for (const [url, change] of taken) session.update(url, change, cache.type(url).isComplete);
			updateGate();
		},
		onDropped: updateGate,
		log,
	});

	const answers = metrics.counter('relay_upstream_responses_total', 'Answers of the control plane, by type.');
	const envoyAnswers = metrics.counter('relay_envoy_answers_total', 'Envoy’s answers to updates, by type and result.');
	metrics.gaugeFrom('relay_cache_bytes', 'Bytes of configuration held.', () => cache.heldBytes);
	metrics.gaugeFrom('relay_upstream_connected', '1 while the control plane answers.', () =>
		upstream.status().state === 'connected' ? 1 : 0,
	);

	const notify = () => {
		for (const listener of listeners) listener();
	};

	const upstream = new Upstream({...deps, protocol: config.protocol, onResponse: receive, onState: followUpstream});
	upstream.subscribe(typeUrl.cluster);
	upstream.subscribe(typeUrl.listener);
	if (config.isNameTableWanted) upstream.subscribe(typeUrl.nameTable);
	if (config.isProxyConfigWanted) upstream.subscribe(typeUrl.proxyConfig);

	function followUpstream(): void {
		if (upstream.status().lastError) saved.use();
		updateGate();
	}

	function updateGate(): void {
		const {savedAt} = saved;
		if (cache.isConfirmed) gate.open('configuration received');
		else if (savedAt && cache.isComplete) gate.open(`as saved ${savedAt.toISOString()}; ${whyNotNewer()}`);
		else {
			const {lastError, state} = upstream.status();
			const waiting =
				state === 'idle' ? 'waiting for Envoy to start' : 'waiting for clusters and listeners from the control plane';
			gate.close(lastError ? lastError.message : waiting, lastError?.hint);
		}
		notify();
	}

	function whyNotNewer(): string {
		return upstream.status().lastError?.message ?? 'the control plane has not answered yet';
	}

	function isSettled(): boolean {
		if (!cache.isConfirmed || pending.size > 0 || sessions.size === 0) return false;
		for (const session of sessions) if (!session.isSettled) return false;
		return true;
	}

	async function receive(response: Response, isWhole: boolean): Promise<void> {
		await saved.taken;
		const url = response.typeUrl;
		answers({type: shortType(url)});
		if (url === typeUrl.nameTable || url === typeUrl.proxyConfig) {
			consume(response);
			return;
		}
		deps.onResponse?.(response, isWhole);
		if (isHeld) {
			upstream.acknowledge(url, response.nonce);
			return;
		}
		saved.supersede();
		const wasConfirmed = cache.isConfirmed;
		const type = cache.type(url);
		const change = await type.apply(response.resources, response.removed, isWhole);
		cache.tidy();
		if (url === typeUrl.cluster) followEndpoints(change);
		else if (url === typeUrl.extensionConfig) warnOfRemoteCode(change);
		// What Envoy has refused and gets again unchanged is not sent to it: it would refuse it again.
		pending.set(url, {nonce: response.nonce, refusal: standingRefusal(response, change)});
		let isConcerned = false;
		for (const session of sessions) if (session.update(url, change, type.isComplete)) isConcerned = true;
		if (!isConcerned) answered(url, response.nonce, undefined);
		snapshot?.note(url, change);
		if (wasConfirmed || !cache.isConfirmed) return;
		saved.confirm();
		updateGate();
	}

	/** Endpoints are asked for as soon as their cluster is known: it saves Envoy a round trip, and they are here when it returns. */
	function followEndpoints({changed, removed}: Change): void {
		const names = changed.flatMap(({endpointName}) => endpointName ?? []);
		if (names.length > 0) upstream.subscribe(typeUrl.endpoint, names);
		if (removed.length === 0) return;
		// Another cluster may use the same endpoints.
		const held = heldEndpoints();
		forget(
			typeUrl.endpoint,
			removed.flatMap(({endpointName}) => endpointName ?? []).filter(name => !held.has(name)),
		);
	}

	function warnOfRemoteCode({changed}: Change): void {
		const names = new Set(changed.map(({name}) => name));
		for (const {resource, uri, problem} of listRemoteCode(cache))
			if (names.has(resource)) log.warn({resource, uri: uri.slice(0, 200)}, problem);
	}

	/** Types that end here: the name table and the mesh's ProxyConfig. An empty answer is neither used nor acknowledged, as istiod expects. */
	function consume({typeUrl: url, nonce, resources}: Response): void {
		if (resources.length === 0) return;
		try {
			const body = bodyOf(resources.any(0));
			if (url === typeUrl.nameTable) deps.onNameTable?.(body);
			else {
				deps.onTrustBundle?.(parseTrustBundle(body));
				proxyConfig = Buffer.from(resources.any(0));
				snapshot?.noteProxyConfig();
			}
			upstream.acknowledge(url, nonce);
		} catch (err) {
			log.warn({err, type: shortType(url)}, 'refused an update of the control plane');
			upstream.acknowledge(url, nonce, {code: 13, message: err instanceof Error ? err.message : String(err)});
		}
	}

	/** Envoy's word on an answer, or ours when no Envoy is concerned; passed on to the control plane. */
	function answered(url: string, nonce: string | undefined, error: ErrorDetail | undefined): void {
		const owed = pending.get(url);
		if (nonce === undefined || owed?.nonce !== nonce) return;
		pending.delete(url);
		upstream.acknowledge(url, nonce, error ?? owed.refusal);
		snapshot?.poke();
	}

	function standingRefusal(response: Response, change: Change): ErrorDetail | undefined {
		for (const session of sessions) {
			const refusal = session.standingRefusal(response, change);
			if (refusal) return refusal;
		}
		return undefined;
	}

	function rejections(): Rejection[] {
		return [...sessions].flatMap(session =>
			[...session.refusals()].map(({url, error, at}) => ({type: shortType(url), message: error.message, at})),
		);
	}

	/** Names nobody needs any more. */
	function forget(url: string, names: readonly string[]): void {
		const unused = names.filter(name => ![...sessions].some(session => session.isSubscribed(url, name)));
		if (unused.length === 0) return;
		upstream.unsubscribe(url, unused);
		for (const name of unused) cache.type(url).delete(name);
	}

	function accept(call: ServerDuplexStream<Buffer, Buffer>, protocol: DownstreamProtocol): void {
		const session: Session = new Session({
			protocol,
			call,
			cache,
			upstreamNonce: url => pending.get(url)?.nonce,
			removeUnknownExtensions: config.removeUnknownExtensions,
			clock,
			log,
			onSubscribe: (url, names) => upstream.subscribe(url, names),
			onUnsubscribe: (url, names) => {
				const held = url === typeUrl.endpoint ? heldEndpoints() : undefined;
				forget(url, held ? names.filter(name => !held.has(name)) : names);
			},
			onAnswered: (url, nonce, error) => {
				envoyAnswers({type: shortType(url), result: error ? 'nack' : 'ack'});
				answered(url, nonce, error);
				snapshot?.poke();
				notify();
			},
			onRemoval: removal => {
				const key = `${removal.category} ${removal.name} ${removal.type}`;
				if (removals.has(key) || removals.size >= maxRemovals) return;
				removals.set(key, removal);
				log.info(
					{name: removal.name, type: removal.type, lost: removal.lost},
					'extension taken out: this Envoy does not have it',
				);
			},
		});
		sessions.add(session);
		const cameAtMs = clock.monotonicMs();
		grace.abort();
		if (!hasLeft) upstream.setWanted(true);
		log.info({protocol}, 'envoy connected');
		const end = () => {
			if (!sessions.delete(session)) return;
			session.close();
			log.info('envoy disconnected');
			if (session.isFed) saved.suspect(clock.monotonicMs() - cameAtMs);
			settle();
		};
		call.on('end', () => {
			call.end();
			end();
		});
		call.on('close', end);
		call.on('cancelled', end);
		call.on('error', end);
	}

	function heldEndpoints(): ReadonlySet<string> {
		const held = new Set<string>();
		for (const {endpointName} of cache.type(typeUrl.cluster).resources.values())
			if (endpointName !== undefined) held.add(endpointName);
		return held;
	}

	/** After an Envoy is gone: what it still owed an answer to is answered for it, and with none left the mesh is left too. */
	function settle(): void {
		for (const [url, {nonce}] of pending) {
			if (![...sessions].some(session => session.watches(url))) answered(url, nonce, undefined);
		}
		if (sessions.size === 0 && !hasLeft) startGrace();
		notify();
	}

	function startGrace(): void {
		grace.abort();
		grace = new AbortController();
		clock.sleep(dataPlaneGraceMs, grace.signal).then(
			() => {
				log.warn({afterMs: dataPlaneGraceMs}, 'no envoy: leaving the mesh until there is one');
				upstream.setWanted(false);
			},
			() => {
				// An Envoy came, or we are leaving anyway.
			},
		);
	}

	updateGate();
	return {
		finished: upstream.finished,
		service: {
			definition: adsDefinition,
			implementation: {
				DeltaAggregatedResources: (call: ServerDuplexStream<Buffer, Buffer>) => accept(call, 'delta'),
				StreamAggregatedResources: (call: ServerDuplexStream<Buffer, Buffer>) => accept(call, 'sotw'),
			},
		},
		begin: () => {
			upstream.setWanted(true);
			if (sessions.size === 0) startGrace();
			saved.wait(clock);
		},
		leave: () => {
			if (!hasLeft) lastWord = snapshot?.stop();
			hasLeft = true;
			grace.abort();
			saved.giveUp();
			upstream.setWanted(false);
		},
		find: (url, name) => cache.type(url).resources.get(name)?.any,
		hold: () => {
			isHeld = true;
		},
		setHealth: report => upstream.setHealth(report),
		retryNow: () => upstream.retryNow(),
		reconnect: () => upstream.reconnect(),
		status: () => ({
			upstream: upstream.status(),
			sessions: sessions.size,
			resources: Object.fromEntries([...cache.types()].map(([url, type]) => [shortType(url), type.resources.size])),
			cacheBytes: cache.heldBytes,
			rejections: rejections(),
			removals: [...removals.values()],
			remoteCode: listRemoteCode(cache),
			snapshot: snapshot?.status(),
			servingSaved: saved.savedAt,
		}),
		onChange: listener => {
			listeners.add(listener);
			return () => listeners.delete(listener);
		},
		stop: async () => {
			lastWord ??= snapshot?.stop();
			hasLeft = true;
			grace.abort();
			saved.giveUp();
			await upstream.stop();
			await saved.taken;
			await lastWord;
		},
	};
}

const asIs = (value: Buffer): Buffer => value;
const stream = {
	requestStream: true,
	responseStream: true,
	requestSerialize: asIs,
	requestDeserialize: asIs,
	responseSerialize: asIs,
	responseDeserialize: asIs,
};
const service = '/envoy.service.discovery.v3.AggregatedDiscoveryService';

const adsDefinition: ServiceDefinition = {
	DeltaAggregatedResources: {path: `${service}/DeltaAggregatedResources`, ...stream},
	StreamAggregatedResources: {path: `${service}/StreamAggregatedResources`, ...stream},
};
