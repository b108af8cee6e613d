import {parseIssued} from './certificate.ts';
import {renderCsr} from './csr.ts';
import {startKeeper} from './keeper.ts';
import {assertKeyType, generateKey} from './key.ts';
import {startRotator} from './rotator.ts';
import type {Source, SourceDeps} from './source.ts';
import {holdState, spiffeIdOf} from './state-dir.ts';
import type {StoredPair} from './store.ts';
import {watchToken} from './token-watch.ts';
import type {CertificateRequest} from './types.ts';

/**
 * Certificates signed by the control plane, kept as generations in the state directory.
 * @throws AgentError identity.key_unsupported, identity.state_unusable, identity.state_locked
 */
export async function startControlPlaneSource(deps: SourceDeps): Promise<Source> {
	const {config, workload, served, requestCertificate, clock, random, log} = deps;
	assertKeyType(config.keyType);
	const spiffeId = spiffeIdOf(workload);
	const held = deps.state ?? (await holdState(config, workload, clock));
	const state = await held.open();
	for (const problem of state.problems) log.warn({problem}, 'stored certificate passed over');
	for (const warning of state.warnings()) log.warn({reason: warning}, 'the state directory cannot be written');
	let generation = state.newest;
	const kept = state.usable ?? state.outdated;
	if (kept) served.publish(kept.pair, 'disk', kept.stored.receivedAt, kept.stored.number);

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
		token: watchToken(deps.token),
		plan: {share: config.rotateAtShare, jitter: config.rotateJitter, rideOutMs: config.rideOutMs},
		retryMaxMs: config.retryMaxMs,
		trialDelayMs: config.trialDelayMs,
		tokenlessRenewal: kept?.stored.isTokenless ? 'works' : 'unknown',
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
