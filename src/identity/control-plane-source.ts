import {AgentError, reasonOf, systemCode} from '../errors.ts';
import {systemFs} from '../lifecycle/atomic-file.ts';
import {acquireLock, type Lock} from '../lifecycle/lock.ts';
import {parseIssued, type VerifiedPair, verifyPair} from './certificate.ts';
import {renderCsr} from './csr.ts';
import {startKeeper} from './keeper.ts';
import {assertKeyType, generateKey} from './key.ts';
import {startRotator} from './rotator.ts';
import type {Source, SourceDeps} from './source.ts';
import {openStore, prepareStateDir, type StoredGeneration, type StoredPair, stateError} from './store.ts';
import {watchToken} from './token-watch.ts';
import type {CertificateRequest} from './types.ts';

/** Istio's default TOKEN_AUDIENCES. */
const defaultAudience = 'istio-ca';
const defaultTrialDelayMs = 60_000;

/**
 * Certificates signed by the control plane, kept as generations in the state directory.
 * @throws AgentError identity.key_unsupported, identity.state_unusable, identity.state_locked
 */
export async function startControlPlaneSource(deps: SourceDeps): Promise<Source> {
	const {config, workload, served, requestCertificate, clock, random, log} = deps;
	assertKeyType(config.keyType);
	const spiffeId = `spiffe://${workload.trustDomain}/ns/${workload.namespace}/sa/${workload.serviceAccount}`;
	const state = await openState(config.stateDir, spiffeId, clock.now());
	for (const problem of state.problems) log.warn({problem}, 'stored certificate passed over');
	for (const warning of state.warnings()) log.warn({reason: warning}, 'the state directory cannot be written');
	let generation = state.newest;
	const {usable} = state;
	if (usable) served.publish(usable.pair, 'disk', usable.stored.receivedAt, usable.stored.number);

	const keeper = startKeeper<StoredPair>({what: 'certificate', write: pair => state.save(pair), clock, random, log});
	const issue = async (auth: CertificateRequest['auth'], signal: AbortSignal): Promise<void> => {
		const key = await generateKey(config.keyType);
		const request = {
			csrPem: renderCsr(key, spiffeId),
			lifetimeMs: config.certificateLifetimeMs,
			certSigner: config.certSigner,
			auth,
		};
		const elements = await requestCertificate(request, signal);
		signal.throwIfAborted();
		const receivedAt = clock.now();
		const pair = parseIssued(elements, key.pem, {now: receivedAt, spiffeId});
		served.publish(pair, 'control-plane', receivedAt, ++generation);
		const isTokenless = auth === 'certificate-only' || rotator.status().tokenlessRenewal === 'works';
		keeper.put({
			keyPem: pair.keyPem,
			chainPem: pair.chainPem,
			rootsPem: pair.rootsPem.join(''),
			receivedAt,
			requestedSpiffeId: spiffeId,
			isTokenless,
		});
		const {serial, notAfter} = pair;
		log.info({spiffeId: pair.spiffeId, serial, notAfter, generation, auth}, 'certificate received');
		for (const warning of pair.warnings) log.warn({warning}, 'certificate is odd');
	};
	const rotator = startRotator({
		issue,
		current: () => served.current(),
		token: watchToken({path: deps.tokenPath, audience: deps.tokenAudience ?? defaultAudience, clock}),
		plan: {share: config.rotateAtShare, jitter: config.rotateJitter, rideOutMs: config.rideOutMs},
		retryMaxMs: config.retryMaxMs,
		trialDelayMs: deps.trialDelayMs ?? defaultTrialDelayMs,
		tokenlessRenewal: usable?.stored.isTokenless ? 'works' : 'unknown',
		changed: deps.changed,
		count: deps.count,
		clock,
		random,
		log,
	});
	return {
		...rotator,
		status: () => {
			const status = rotator.status();
			const warnings = [...state.warnings(), ...state.problems, keeper.warning(), ...status.warnings];
			return {...status, warnings: warnings.filter(warning => warning !== undefined)};
		},
		stop: async () => {
			await rotator.stop();
			await keeper.stop();
			await state.close();
		},
	};
}

interface IdentityStateDir {
	/** The newest stored pair that is whole, ours and still valid. */
	readonly usable: {readonly stored: StoredGeneration; readonly pair: VerifiedPair} | undefined;
	/** Number of the newest generation, usable or not. */
	readonly newest: number;
	/** Why others were passed over; emptied when a new one has been saved. */
	readonly problems: readonly string[];
	warnings(): readonly string[];
	save(pair: StoredPair): Promise<void>;
	close(): Promise<void>;
}

/**
 * Locks the directory and loads from it. A directory that can only be read still serves a valid pair, with a warning;
 * without one there is nothing to wait for, as every certificate would be lost with the process.
 */
async function openState(dir: string, spiffeId: string, now: Date): Promise<IdentityStateDir> {
	await prepareStateDir(dir);
	const store = openStore(dir, systemFs);
	let lock: Lock | undefined;
	let unwritable: unknown;
	try {
		lock = await acquireLock(`${dir}/lock`);
		await store.removeLeftovers();
	} catch (error) {
		// Only the disk's refusals can be lived with; a lock that another agent holds cannot.
		if (error instanceof AgentError || systemCode(error) === undefined) throw error;
		unwritable = error;
	}
	const {generations, problems} = await store.load().catch(error => {
		throw stateError(dir, error);
	});
	const usable = choose(generations, spiffeId, now, problems);
	if (unwritable && !usable) {
		await lock?.release();
		throw stateError(dir, unwritable);
	}
	return {
		usable,
		newest: generations[0]?.number ?? 0,
		problems,
		warnings: () => (unwritable ? [`new certificates cannot be kept: ${stateError(dir, unwritable).message}`] : []),
		save: async pair => {
			lock ??= await acquireLock(`${dir}/lock`);
			await store.save(pair);
			unwritable = undefined;
			problems.length = 0;
		},
		close: async () => {
			await lock?.release();
		},
	};
}

function choose(
	generations: readonly StoredGeneration[],
	spiffeId: string,
	now: Date,
	problems: string[],
): IdentityStateDir['usable'] {
	for (const stored of generations) {
		if (stored.requestedSpiffeId !== spiffeId) {
			problems.push(
				`stored certificate ${stored.number} was asked for as ${stored.requestedSpiffeId}, not ${spiffeId}`,
			);
			continue;
		}
		try {
			return {stored, pair: verifyPair(stored, {now, spiffeId})};
		} catch (error) {
			problems.push(`stored certificate ${stored.number}: ${reasonOf(error)}`);
		}
	}
	return undefined;
}
