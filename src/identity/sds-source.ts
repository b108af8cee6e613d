import {Client, type ClientDuplexStream, credentials, type ServiceError} from '@grpc/grpc-js';
import type {IdentitySource} from '../config/types.ts';
import {AgentError, reasonOf} from '../errors.ts';
import {Backoff} from '../lifecycle/index.ts';
import {Secret} from '../log.ts';
import {typeUrl} from '../proto/types.ts';
import {verifyPair} from './certificate.ts';
import {describe, isWorthTelling} from './failure.ts';
import {parseSecretUpdate, renderSecretRequest, type SecretResource, type SecretUpdate} from './sds-messages.ts';
import type {Source, SourceDeps} from './source.ts';
import {spiffeIdOf} from './state-dir.ts';
import type {IdentityFailure} from './types.ts';

const method = '/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets';
/** The names SPIRE and Istio agree on: our certificate, and the roots. */
const names = ['default', 'ROOTCA'] as const;
const retryBaseMs = 500;

/** Certificates from a SPIRE agent or another SDS server on a Unix socket. What was last good is served while it is away. */
export async function startSdsSource(
	{socketPath}: Extract<IdentitySource, {kind: 'sds'}>,
	deps: SourceDeps,
): Promise<Source> {
	const {config, workload, served, changed, count, clock, random, log} = deps;
	const stopping = new AbortController();
	const backoff = new Backoff({baseMs: retryBaseMs, maxMs: config.retryMaxMs}, clock, random);
	const secrets = new Map<string, SecretResource>();
	let wake = new AbortController();
	let stream: ClientDuplexStream<Buffer, Buffer> | undefined;
	let lastError: IdentityFailure | undefined;
	let nextAttemptAt: Date | undefined;
	let generation = 0;

	const spiffeId = spiffeIdOf(workload);
	const nodeId = `${workload.namespace}~${workload.serviceAccount}`;

	/** Answers are partial: a certificate and its roots may come one after the other, so both are kept. */
	const take = ({secrets: received}: SecretUpdate): void => {
		for (const secret of received) secrets.set(secret.name, secret);
		const certificate = secrets.get('default')?.certificate;
		const rootsPem = secrets.get('ROOTCA')?.trustedCaPem;
		if (!certificate || rootsPem === undefined) return;
		const pair = verifyPair(
			{...certificate, keyPem: new Secret(certificate.keyPem), rootsPem},
			{now: clock.now(), spiffeId},
		);
		const before = served.latest;
		const isSame = before?.chainPem === pair.chainPem;
		if (!isSame) generation++;
		served.publish(pair, 'sds', isSame ? before.receivedAt : clock.now(), generation);
		log.info({spiffeId: pair.spiffeId, serial: pair.serial, notAfter: pair.notAfter}, 'certificate received over SDS');
		backoff.reset();
		lastError = undefined;
		count('success');
		changed();
	};

	const failed = (error: unknown): void => {
		lastError = describe(error, clock.now());
		count('failure');
		changed();
	};

	/** One stream, from its opening to its end. Rejects with why it ended. */
	const follow = (client: Client): Promise<never> =>
		new Promise((_, reject) => {
			const call = client.makeBidiStreamRequest<Buffer, Buffer>(method, passThrough, passThrough);
			stream = call;
			const send = (update?: SecretUpdate, error?: string) => {
				const {versionInfo, nonce} = update ?? {};
				call.write(renderSecretRequest({nodeId, typeUrl: typeUrl.secret, names, versionInfo, nonce, error}));
			};
			// Of the last update that was taken; a refusal repeats it, which is how the server knows.
			let accepted = '';
			call.on('data', (buffer: Buffer) => {
				let update: SecretUpdate;
				try {
					update = parseSecretUpdate(buffer, typeUrl.secret);
				} catch (cause) {
					// Without a nonce there is nothing to refuse; a new stream starts clean.
					reject(sdsError(socketPath, cause));
					call.cancel();
					return;
				}
				try {
					take(update);
					accepted = update.versionInfo;
					send(update);
				} catch (cause) {
					failed(sdsError(socketPath, cause));
					log.warn({err: cause}, 'secret refused');
					send({...update, versionInfo: accepted}, reasonOf(cause));
				}
			});
			call.on('error', (cause: ServiceError) => reject(sdsError(socketPath, cause)));
			call.on('end', () => reject(sdsError(socketPath, new Error('the server ended the stream'))));
			send();
		});

	const run = async (): Promise<void> => {
		while (!stopping.signal.aborted) {
			const {signal} = wake;
			// A new client each time: a channel keeps a backoff of its own, and ours is the one that is told.
			const client = new Client(`unix:${socketPath}`, credentials.createInsecure());
			try {
				await follow(client);
			} catch (error) {
				if (stopping.signal.aborted) return;
				const waitMs = backoff.nextDelayMs();
				nextAttemptAt = new Date(clock.now().getTime() + waitMs);
				failed(error);
				if (isWorthTelling(backoff.attempts))
					log.warn({err: error, attempts: backoff.attempts}, 'SDS stream lost, will open it again');
				await clock.sleep(waitMs, signal).catch(() => {}); // woken by retryNow or the end
			} finally {
				nextAttemptAt = undefined;
				client.close();
			}
		}
	};
	const finished = run();
	const interrupt = (): void => {
		wake.abort();
		wake = new AbortController();
	};

	return {
		finished,
		status: () => ({
			attempts: backoff.attempts,
			lastError,
			nextAttemptAt,
			lockedOut: undefined,
			tokenlessRenewal: 'unknown',
			tokenlessRenewalReason: undefined,
			warnings: [],
		}),
		rotateNow: async () => {
			throw new AgentError(
				'identity.source_unusable',
				`rotate: the SDS server at ${socketPath} decides when to rotate`,
			);
		},
		retryNow: interrupt,
		stop: () => {
			stopping.abort(new Error('stopping'));
			interrupt();
			stream?.cancel();
			return finished;
		},
	};
}

function passThrough(buffer: Buffer): Buffer {
	return buffer;
}

function sdsError(socketPath: string, cause: unknown): AgentError {
	return new AgentError('identity.source_unusable', `receive secrets from ${socketPath}: ${reasonOf(cause)}`, {
		cause,
		hint: `check that the SDS server is running and has an entry for this workload (\`ls -l ${socketPath}\`)`,
	});
}
