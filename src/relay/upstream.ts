import type {AdsProtocol, AdsStream} from '../control-plane/index.ts';
import {AgentError, reasonOf} from '../errors.ts';
import {Backoff, type Clock, type Metrics, type Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {isWildcardType, shortType, typeUrl} from '../proto/types.ts';
import {
	type ErrorDetail,
	encodeDeltaRequest,
	encodeSotwRequest,
	parseDeltaResponse,
	parseSotwResponse,
	type Response,
} from './envelope.ts';
import {makeBeforeBreak} from './type-state.ts';

/** What the workload says of itself; sent without payload, as istiod wants it. */
export interface HealthReport {
	readonly isHealthy: boolean;
	readonly message: string;
}

export type UpstreamState = 'idle' | 'connecting' | 'subscribing' | 'connected' | 'waiting';

export interface UpstreamStatus {
	/** `idle`: not wanted now. `subscribing`: the stream is open, nothing has come yet. `waiting`: before the next try. */
	readonly state: UpstreamState;
	readonly endpoint: string | undefined;
	readonly protocol: AdsProtocol;
	readonly since: Date;
	/** Failures since the last good stream. */
	readonly attempts: number;
	readonly nextAttemptAt: Date | undefined;
	readonly lastError:
		| {readonly code: string; readonly message: string; readonly hint: string | undefined; readonly at: Date}
		| undefined;
}

export interface UpstreamDeps {
	readonly openAdsStream: (protocol: AdsProtocol, signal: AbortSignal) => Promise<AdsStream>;
	readonly protocol: AdsProtocol;
	/** The encoded core.v3.Node; asked for each stream anew. */
	readonly node: () => Buffer;
	readonly backoff: {readonly baseMs: number; readonly maxMs: number};
	/**
	 * One answer. `isWhole`: what it does not name is gone. The receiver owes one `acknowledge` for its nonce. The next
	 * one comes when this is done: a slow receiver holds the control plane back.
	 */
	readonly onResponse: (response: Response, isWhole: boolean) => Promise<void> | void;
	/** After each change of `status()`. */
	readonly onState: () => void;
	readonly clock: Clock;
	readonly random: () => number;
	readonly log: Logger;
	readonly metrics: Metrics;
}

/** How long a fresh stream may stay silent before another endpoint is tried; a rate-limited istiod takes seconds. */
const firstAnswerMs = 30_000;

/** A stream that lived this long was a good one: its end starts the backoff anew. */
const goodStreamMs = 30_000;
/**
 * One that was cut short after it had answered: the control plane is there, and takes our entry away when we are gone for
 * its grace period, 10 s. Many that come back to one that ends streams over and over are still spread.
 */
const afterAnswerMs = 4000;

/** How long the control plane has to end a stream that we have ended. */
const orderlyEndMs = 1000;

/** What is asked first, so that clusters are there before the listeners that use them. */
const order: readonly string[] = [...makeBeforeBreak, typeUrl.nameTable, typeUrl.proxyConfig];

function silent(endpoint: string): AgentError {
	return new AgentError(
		'control_plane.unreachable',
		`ADS stream at ${endpoint}: no answer for ${firstAnswerMs / 1000} s`,
		{
			hint: `${endpoint} takes connections and says nothing: look at its load and its log. The agent tries again, elsewhere if it can`,
		},
	);
}

interface StreamState {
	readonly stream: AdsStream;
	readonly protocol: AdsProtocol;
	/** Types asked for on this stream, with the last version and nonce seen (state of the world needs both). */
	readonly asked: Map<string, {version: string; nonce: string; hasAnswered: boolean}>;
	isNodeSent: boolean;
}

/**
 * The one ADS stream to the control plane. It keeps its own subscriptions and replays them on each new stream, so it
 * may reconnect, or move to another control plane, without Envoy noticing.
 */
export class Upstream implements Running {
	readonly finished: Promise<void>;
	readonly #deps: UpstreamDeps;
	/** Code of the failure that was last told, until a connection is good again. */
	#told: string | undefined;
	readonly #backoff: Backoff;
	readonly #stopping = new AbortController();
	/** type → names; empty = all of them. */
	readonly #wanted = new Map<string, Set<string>>();
	readonly #connects;
	#current: StreamState | undefined;
	#health: HealthReport | undefined;
	#protocol: AdsProtocol;
	#isWanted = false;
	/** Gives up the attempt to connect that is under way. */
	#attempt = new AbortController();
	/** Answers are taken in one after another. */
	#receiving: Promise<void> = Promise.resolve();
	#wake: (() => void) | undefined;
	#retry: AbortController | undefined;
	#status: UpstreamStatus;

	constructor(deps: UpstreamDeps) {
		this.#deps = deps;
		this.#protocol = deps.protocol;
		this.#backoff = new Backoff({...deps.backoff, resetAfterMs: deps.backoff.maxMs * 3}, deps.clock, deps.random);
		this.#connects = deps.metrics.counter(
			'relay_upstream_streams_total',
			'ADS streams opened to the control plane, by how they ended.',
		);
		this.#status = {
			state: 'idle',
			endpoint: undefined,
			protocol: deps.protocol,
			since: deps.clock.now(),
			attempts: 0,
			nextAttemptAt: undefined,
			lastError: undefined,
		};
		// In a later turn: whoever is told of changes must be able to ask us what they are.
		this.finished = Promise.resolve().then(() => this.#run());
	}

	status(): UpstreamStatus {
		return this.#status;
	}

	/** Whether there should be a stream at all: a VM without a data plane must not be registered. */
	setWanted(isWanted: boolean): void {
		if (this.#isWanted === isWanted) return;
		this.#isWanted = isWanted;
		if (isWanted) this.#wake?.();
		else this.#endStream();
	}

	/** Tries again at once if a retry is pending: a new token or certificate is there. */
	retryNow(): void {
		this.#retry?.abort();
	}

	/** Adds names (none: the whole type) to what is asked for, on this stream and every later one. */
	subscribe(url: string, names: Iterable<string> = []): void {
		const known = this.#wanted.get(url);
		const wanted = known ?? new Set<string>();
		const added: string[] = [];
		for (const name of names) {
			if (wanted.has(name)) continue;
			wanted.add(name);
			added.push(name);
		}
		this.#wanted.set(url, wanted);
		// A request that changes nothing confuses istiod, which takes it for an acknowledgement.
		if (!known || added.length > 0) this.#send(url, added, []);
	}

	unsubscribe(url: string, names: Iterable<string>): void {
		const wanted = this.#wanted.get(url);
		const gone = [...names].filter(name => wanted?.delete(name));
		if (gone.length > 0) this.#send(url, [], gone);
	}

	/** Whether a name is asked for, or all of its type. */
	wants(url: string, name: string): boolean {
		return isWildcardType(url) || this.#wanted.get(url)?.has(name) === true;
	}

	/** Answers a response; nothing happens when its stream is gone. */
	acknowledge(url: string, nonce: string, error?: ErrorDetail): void {
		const current = this.#current;
		const asked = current?.asked.get(url);
		if (!current || !asked || asked.nonce !== nonce) return;
		if (current.protocol === 'delta') {
			this.#write(current, encodeDeltaRequest({typeUrl: url, nonce, error}));
		} else {
			const names = this.#wanted.get(url);
			this.#write(current, encodeSotwRequest({typeUrl: url, nonce, version: asked.version, names, error}));
		}
	}

	/** Remembers the report and sends it, now if the stream has asked for listeners, else as soon as it has. */
	setHealth(report: HealthReport): void {
		this.#health = report;
		if (this.#current?.asked.has(typeUrl.listener)) this.#sendHealth(this.#current);
	}

	/** Ends this stream; as with any end, another follows after the first, short wait. */
	reconnect(): void {
		this.#endStream();
	}

	async stop(): Promise<void> {
		this.#stopping.abort();
		this.#wake?.();
		this.#endStream();
		await this.finished;
	}

	/** Half-closes, so that the control plane sees an orderly end; one that does not answer is cut off. */
	#endStream(): void {
		// One that is opened after we have left would put us back into the mesh.
		this.#attempt.abort();
		this.#retry?.abort();
		const stream = this.#current?.stream;
		stream?.call.end();
		if (stream) setTimeout(() => stream.close(), orderlyEndMs).unref();
	}

	async #run(): Promise<void> {
		const {signal} = this.#stopping;
		while (!signal.aborted) {
			if (!this.#isWanted) {
				this.#set({state: 'idle', endpoint: undefined, nextAttemptAt: undefined});
				await new Promise<void>(resolve => {
					this.#wake = resolve;
				});
				continue;
			}
			this.#attempt = new AbortController();
			const {signal: attempt} = this.#attempt;
			try {
				await this.#runStream(attempt);
				this.#connects({end: 'closed'});
			} catch (error) {
				if (signal.aborted) return;
				if (!attempt.aborted) this.#noteFailure(error);
			}
			if (this.#isWanted && !signal.aborted) await this.#wait(signal);
		}
	}

	/** One stream, from connecting to its end. Resolves when it was ended in order, rejects with why it failed. */
	async #runStream(signal: AbortSignal): Promise<void> {
		const {clock, log} = this.#deps;
		this.#set({state: 'connecting', nextAttemptAt: undefined});
		const protocol = this.#protocol;
		const stream = await this.#deps.openAdsStream(protocol, signal);
		if (signal.aborted) {
			stream.close();
			throw signal.reason;
		}
		const openedMs = clock.monotonicMs();
		const current: StreamState = {stream, protocol, asked: new Map(), isNodeSent: false};
		const heard = new AbortController();
		clock.sleep(firstAnswerMs, heard.signal).then(
			() => stream.call.destroy(silent(stream.endpoint)),
			() => {
				// It answered, or the stream ended.
			},
		);
		try {
			await new Promise<void>((resolve, reject) => {
				stream.call.on('data', (message: Buffer) => {
					heard.abort();
					if (this.#status.state !== 'connected') {
						log.info({endpoint: stream.endpoint, protocol}, 'connected to the control plane');
						this.#told = undefined;
						this.#set({state: 'connected', endpoint: stream.endpoint, attempts: 0, lastError: undefined});
					}
					stream.call.pause();
					// A later stream's answers wait for those of an earlier one too.
					this.#receiving = this.#receiving
						.then(() => this.#receive(current, message))
						.finally(() => stream.call.resume());
				});
				stream.call.once('error', error => reject(stream.explain(error, heard.signal.aborted)));
				stream.call.on('end', resolve);
				this.#current = current;
				this.#set({state: 'subscribing', endpoint: stream.endpoint});
				this.#replay(current);
			});
		} finally {
			const hasAnswered = heard.signal.aborted;
			heard.abort();
			this.#current = undefined;
			// What closing it makes it say is no failure, and nothing to learn from.
			stream.call.removeAllListeners('error').on('error', () => {});
			stream.close();
			if (clock.monotonicMs() - openedMs > goodStreamMs) this.#backoff.reset();
			else if (hasAnswered) this.#backoff.easeTo(afterAnswerMs);
		}
	}

	/** Everything wanted, in order. The health report follows the listeners: istiod has the workload by then. */
	#replay(current: StreamState): void {
		const urls = [
			...order.filter(url => this.#wanted.has(url)),
			...[...this.#wanted.keys()].filter(url => !order.includes(url)),
		];
		for (const url of urls) {
			const names = this.#wanted.get(url)!;
			if (names.size > 0 || isWildcardType(url) || url === typeUrl.nameTable || url === typeUrl.proxyConfig)
				this.#send(url, names, []);
		}
		if (current.asked.has(typeUrl.listener)) this.#sendHealth(current);
	}

	#send(url: string, added: Iterable<string>, removed: Iterable<string>): void {
		const current = this.#current;
		if (!current) return;
		const node = current.isNodeSent ? undefined : this.#deps.node();
		current.isNodeSent = true;
		const asked = current.asked.get(url);
		if (!asked) current.asked.set(url, {version: '', nonce: '', hasAnswered: false});
		if (current.protocol === 'delta') {
			this.#write(current, encodeDeltaRequest({node, typeUrl: url, subscribe: added, unsubscribe: removed}));
		} else {
			this.#write(
				current,
				encodeSotwRequest({
					node,
					typeUrl: url,
					names: this.#wanted.get(url),
					version: asked?.version,
					nonce: asked?.nonce,
				}),
			);
		}
	}

	#sendHealth(current: StreamState): void {
		if (!this.#health) return;
		// Code 13 (INTERNAL) is what istiod's own agent sends; the message ends up in the WorkloadEntry's condition.
		const error = this.#health.isHealthy ? undefined : {code: 13, message: this.#health.message};
		const encode = current.protocol === 'delta' ? encodeDeltaRequest : encodeSotwRequest;
		this.#write(current, encode({typeUrl: typeUrl.health, error}));
	}

	#write({stream}: StreamState, message: Buffer): void {
		// One that we have ended takes no more; the next is told everything.
		if (stream.call.writableEnded) return;
		// Never held back: requests are few and small, and a bounded queue here has been seen to deadlock.
		stream.call.write(message);
	}

	async #receive(current: StreamState, message: Buffer): Promise<void> {
		if (this.#current !== current) return;
		let response: Response;
		try {
			response = current.protocol === 'delta' ? parseDeltaResponse(message) : parseSotwResponse(message);
		} catch (cause) {
			current.stream.call.destroy(
				new AgentError('relay.malformed', `read answer of ${current.stream.endpoint}: not an xDS response`, {cause}),
			);
			return;
		}
		const asked = current.asked.get(response.typeUrl);
		if (!asked) {
			this.#deps.log.debug({type: response.typeUrl}, 'answer of a type nobody asked for');
			return;
		}
		// The first delta answer on a stream carries everything, and so does every state-of-the-world one.
		const isWhole = isWildcardType(response.typeUrl) && (current.protocol === 'sotw' || !asked.hasAnswered);
		asked.hasAnswered = true;
		asked.nonce = response.nonce;
		asked.version = response.version;
		this.#deps.log.debug(
			{type: shortType(response.typeUrl), resources: response.resources.length, bytes: message.length},
			'answer received',
		);
		try {
			await this.#deps.onResponse(response, isWhole);
		} catch (cause) {
			const {call, endpoint} = current.stream;
			const what = `take in ${shortType(response.typeUrl)} of ${endpoint}: ${reasonOf(cause)}`;
			call.destroy(new AgentError('relay.malformed', what, {cause}));
		}
	}

	#noteFailure(error: unknown): void {
		const {log, clock} = this.#deps;
		const failure =
			error instanceof AgentError ? error : new AgentError('control_plane.failed', String(error), {cause: error});
		this.#connects({end: failure.code});
		if (failure.code === 'control_plane.unsupported' && this.#protocol === 'delta') {
			this.#protocol = 'sotw';
			log.warn('the control plane has no delta ADS, using state of the world');
		}
		const {state, attempts} = this.#status;
		// The same refusal again and again is one line, not one a minute for a night; what identity has told is none.
		const isNews = this.#told !== failure.code && !failure.code.startsWith('identity.');
		const needsSomebody = (failure.fields['mender'] ?? 'time') !== 'time';
		if (state === 'connected' && !needsSomebody) {
			// Connections end by their age, or as istiod restarts. It is worth a warning if the next one fails.
			log.info({reason: failure.message}, 'connection to the control plane ended, connecting again');
		} else if (isNews) {
			this.#told = failure.code;
			log[needsSomebody ? 'error' : 'warn']({err: failure}, 'control plane connection failed');
		} else log.debug({err: failure, attempts}, 'control plane connection failed again');
		this.#set({
			attempts: attempts + 1,
			lastError: {code: failure.code, message: failure.message, hint: failure.hint, at: clock.now()},
		});
	}

	async #wait(signal: AbortSignal): Promise<void> {
		const {clock} = this.#deps;
		const delayMs = this.#backoff.nextDelayMs();
		this.#set({state: 'waiting', endpoint: undefined, nextAttemptAt: new Date(clock.now().getTime() + delayMs)});
		this.#retry = new AbortController();
		await clock.sleep(delayMs, AbortSignal.any([signal, this.#retry.signal])).catch(() => {
			// Woken early: by stop, which the loop sees, or because something changed for the better.
		});
		this.#retry = undefined;
	}

	#set(change: Partial<UpstreamStatus>): void {
		const since =
			change.state !== undefined && change.state !== this.#status.state ? this.#deps.clock.now() : this.#status.since;
		this.#status = {...this.#status, ...change, since, protocol: this.#protocol};
		this.#deps.onState();
	}
}
