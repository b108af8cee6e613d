import {status as grpcStatus, type ServerDuplexStream, type sendUnaryData} from '@grpc/grpc-js';
import {never, type Running} from '../lifecycle/index.ts';
import {
	parseDeltaRequest,
	parseSotwRequest,
	renderDeltaResponse,
	renderSotwResponse,
	type SentSecret,
} from './sds-messages.ts';
import {Secrets, type SecretsDeps} from './secrets.ts';
import type {XdsService} from './xds-socket.ts';

export interface SdsService extends Running, XdsService {
	/** By name, of the secrets that Envoy asks for. */
	status(): Readonly<Record<string, SecretStatus>>;
}

export interface SecretStatus {
	readonly streams: number;
	/** Each of them has taken it as it is now: Envoy uses no older one. */
	readonly isCurrent: boolean;
}

export type SdsDeps = SecretsDeps;

type Call = ServerDuplexStream<Buffer, Buffer>;

/**
 * Envoy's SecretDiscoveryService. A name that is not available yet is answered when it is: Envoy waits, and an error
 * would only make it come back. Nothing is ever removed, because Envoy ignores the removal of a secret in use.
 */
export function startSds(deps: SdsDeps): SdsService {
	const secrets = new Secrets(deps);
	const calls = new Map<Call, Subscription>();
	const serve = (call: Call, stream: Subscription) => {
		calls.set(call, stream);
		const stopListening = secrets.onChange(() => stream.push());
		const end = () => {
			calls.delete(call);
			stopListening();
			stream.close();
		};
		call.on('data', (message: Buffer) => {
			try {
				stream.receive(message);
			} catch (err) {
				deps.log.warn({err}, 'secret request not readable');
				call.emit('error', {code: grpcStatus.INVALID_ARGUMENT, details: 'malformed request'});
				end();
			}
		});
		call.on('end', () => {
			end();
			call.end();
		});
		call.on('cancelled', end);
		call.on('error', end);
	};
	return {
		finished: never,
		status: () => {
			const seen: Record<string, SecretStatus> = {};
			for (const stream of calls.values())
				for (const [name, isTaken] of stream.taken()) {
					const {streams, isCurrent} = seen[name] ?? {streams: 0, isCurrent: true};
					seen[name] = {streams: streams + 1, isCurrent: isCurrent && isTaken};
				}
			return seen;
		},
		definition,
		implementation: {
			StreamSecrets: (call: Call) => serve(call, new SotwSubscription(call, secrets, deps)),
			DeltaSecrets: (call: Call) => serve(call, new DeltaSubscription(call, secrets, deps)),
			FetchSecrets: (_call: unknown, callback: sendUnaryData<Buffer>) =>
				callback({code: grpcStatus.UNIMPLEMENTED, details: 'use StreamSecrets or DeltaSecrets'}),
		},
		async stop() {
			for (const call of calls.keys()) call.end();
			secrets.close();
		},
	};
}

/** What one stream wants and has been sent. */
abstract class Subscription {
	protected readonly call: Call;
	protected readonly secrets: Secrets;
	protected readonly log: SdsDeps['log'];
	/** Name → how to stop wanting it. */
	protected readonly wanted = new Map<string, () => void>();
	/** Name → version last sent on this stream, or held by Envoy from before. */
	protected readonly held = new Map<string, string>();
	/** Nonce → what was sent with it, until Envoy has answered. */
	readonly #unanswered = new Map<string, readonly Omit<SentSecret, 'bytes'>[]>();
	/** Name → version that Envoy has said it uses. */
	readonly #taken = new Map<string, string>();
	#nonce = 0;

	constructor(call: Call, secrets: Secrets, {log}: SdsDeps) {
		this.call = call;
		this.secrets = secrets;
		this.log = log;
	}

	abstract receive(message: Buffer): void;
	protected abstract render(changed: readonly SentSecret[], nonce: string): Buffer;

	/** Sends what is wanted, available and not yet there in this version. */
	push(): void {
		const changed: SentSecret[] = [];
		for (const name of this.wanted.keys()) {
			const secret = this.secrets.get(name);
			if (secret === undefined || this.held.get(name) === secret.version) continue;
			this.held.set(name, secret.version);
			changed.push({name, ...secret});
		}
		if (changed.length > 0) this.send(changed);
	}

	/** What is wanted here, and whether Envoy has it as it is now. */
	taken(): readonly (readonly [name: string, isTaken: boolean])[] {
		return [...this.wanted.keys()].map(name => {
			const secret = this.secrets.get(name);
			return [name, secret !== undefined && this.#taken.get(name) === secret.version];
		});
	}

	close(): void {
		for (const release of this.wanted.values()) release();
		this.wanted.clear();
	}

	protected get lastNonce(): string {
		return this.#nonce === 0 ? '' : String(this.#nonce);
	}

	protected send(changed: readonly SentSecret[]): void {
		this.#nonce++;
		// Not the keys themselves: an answer may never come.
		this.#unanswered.set(
			this.lastNonce,
			changed.map(({name, version}) => ({name, version})),
		);
		this.call.write(this.render(changed, this.lastNonce));
		this.log.debug({names: changed.map(({name}) => name)}, 'secrets sent');
	}

	protected want(name: string): void {
		if (!this.wanted.has(name)) this.wanted.set(name, this.secrets.want(name));
	}

	protected forget(name: string): void {
		this.wanted.get(name)?.();
		this.wanted.delete(name);
		this.held.delete(name);
		this.#taken.delete(name);
	}

	protected noteAnswer(nonce: string, error: string | undefined): void {
		if (error === undefined)
			for (const {name, version} of this.#unanswered.get(nonce) ?? []) this.noteTaken(name, version);
		else this.log.error({names: [...this.wanted.keys()], reason: error}, 'envoy rejected a secret');
		this.#unanswered.delete(nonce);
	}

	protected noteTaken(name: string, version: string): void {
		this.#taken.set(name, version);
	}
}

class SotwSubscription extends Subscription {
	receive(message: Buffer): void {
		const request = parseSotwRequest(message);
		this.noteAnswer(request.nonce, request.error);
		// An answer to a message before the last: a newer answer is on its way.
		if (request.nonce !== '' && request.nonce !== this.lastNonce) return;
		const names = new Set(request.names);
		for (const name of [...this.wanted.keys()]) if (!names.has(name)) this.forget(name);
		for (const name of names) this.want(name);
		// A first request is always answered, whatever version it holds: Envoy's reconnect back-off starts anew with it.
		this.push();
	}

	protected render(changed: readonly SentSecret[], nonce: string): Buffer {
		return renderSotwResponse(changed, nonce);
	}
}

class DeltaSubscription extends Subscription {
	#isFirst = true;

	receive(message: Buffer): void {
		const request = parseDeltaRequest(message);
		this.noteAnswer(request.nonce, request.error);
		for (const name of request.unsubscribe) this.forget(name);
		for (const name of request.subscribe) {
			// Subscribing again asks for the resource again.
			this.held.delete(name);
			this.want(name);
		}
		if (this.#isFirst)
			for (const [name, version] of request.versions) {
				this.held.set(name, version);
				this.noteTaken(name, version);
			}
		const isReturning = this.#isFirst && request.versions.size > 0;
		this.#isFirst = false;
		const nonceBefore = this.lastNonce;
		this.push();
		// Nothing changed while it was away. The empty answer resets Envoy's reconnect back-off.
		if (isReturning && this.lastNonce === nonceBefore) this.send([]);
	}

	protected render(changed: readonly SentSecret[], nonce: string): Buffer {
		return renderDeltaResponse(changed, nonce);
	}
}

const asIs = (message: Buffer) => message;

function method(name: string, isStream: boolean) {
	return {
		path: `/envoy.service.secret.v3.SecretDiscoveryService/${name}`,
		requestStream: isStream,
		responseStream: isStream,
		requestSerialize: asIs,
		requestDeserialize: asIs,
		responseSerialize: asIs,
		responseDeserialize: asIs,
	};
}

const definition = {
	StreamSecrets: method('StreamSecrets', true),
	DeltaSecrets: method('DeltaSecrets', true),
	FetchSecrets: method('FetchSecrets', false),
};
