import {resolve} from 'node:path';
import {startControlPlaneSource} from './control-plane-source.ts';
import {startFilesSource} from './files-source.ts';
import {startKeeper} from './keeper.ts';
import {writeOutput} from './output.ts';
import {startSdsSource} from './sds-source.ts';
import {ServedCertificate} from './served.ts';
import type {Source, SourceDeps} from './source.ts';
import {clockWarning, gateTextOf, stateOf} from './state.ts';
import type {Identity, IdentityDeps, IdentityStatus, WorkloadCertificate} from './types.ts';

/** How late the gate closes on an expired certificate; `current()` is never late. */
const expiryCheckMs = 10_000;

/**
 * Loads what is stored and starts to keep it fresh. Returns before there is a certificate: Envoy and the ADS stream
 * start meanwhile, and status must be able to say why there is none. After that it never ends by itself.
 * @throws AgentError for what cannot get better: identity.state_unusable, identity.state_locked, identity.key_unsupported
 */
export async function startIdentity(deps: IdentityDeps, signal: AbortSignal): Promise<Identity> {
	signal.throwIfAborted();
	const {config, clock, random, gate, log, metrics} = deps;
	const served = new ServedCertificate(clock, log);
	const stopping = new AbortController();
	let source: Source | undefined;
	const changed = (): void => {
		if (!source || stopping.signal.aborted) return;
		const status = source.status();
		const text = gateTextOf(stateOf(served.latest, status, clock.now()), served.latest, status);
		if (text.isOpen) gate.open(text.reason);
		else gate.close(text.reason, text.hint);
	};

	metrics.gaugeFrom('certificate_expiry_timestamp_seconds', 'When the workload certificate expires, Unix time.', () =>
		served.latest ? Math.floor(served.latest.notAfter.getTime() / 1000) : undefined,
	);
	const countRotation = metrics.counter(
		'certificate_rotations_total',
		'Attempts to get a new workload certificate, by result.',
	);
	const output = startOutput(deps);
	const unlisten = served.onChange(certificate => {
		output?.put(certificate);
		changed();
	});
	source = await startSource({...deps, served, changed, count: result => countRotation({result})});
	if (signal.aborted) {
		await source.stop();
		await output?.stop();
		signal.throwIfAborted();
	}
	changed();
	const watching = watchExpiry();

	async function watchExpiry(): Promise<void> {
		let wasValid = served.current() !== undefined;
		while (!stopping.signal.aborted) {
			const isValid = served.current() !== undefined;
			// A clock that was wrong has been set right: who came meanwhile has been given nothing.
			if (isValid && !wasValid) served.tell();
			wasValid = isValid;
			const leftMs = served.current()?.notAfter.getTime() ?? Number.POSITIVE_INFINITY;
			const waitMs = Math.min(expiryCheckMs, Math.max(leftMs - clock.now().getTime(), 1));
			await clock.sleep(waitMs, stopping.signal).catch(() => {}); // ends only with the identity
			changed();
		}
	}

	const started = source;
	let stopped: Promise<void> | undefined;
	const stop = async (): Promise<void> => {
		stopping.abort();
		unlisten();
		await started.stop();
		await output?.stop();
		await watching;
		gate.close('stopped');
	};
	return {
		finished: started.finished,
		current: () => served.current(),
		trustBundlePem: () => served.trustBundlePem,
		onChange: listener => served.onChange(listener),
		setAdditionalRoots: roots => served.setAdditionalRoots(roots),
		rotateNow: () => started.rotateNow(),
		retryNow: () => started.retryNow(),
		status: () => renderStatus(config.stateDir, served, started, output?.warning(), clock.now()),
		stop: () => {
			stopped ??= stop();
			return stopped;
		},
	};

	function startOutput({config: {outputDir, outputKeyMode, source: from}}: IdentityDeps) {
		if (outputDir === undefined) return undefined;
		// Writing over the files that are the source would feed the agent its own output for ever.
		if (from.kind === 'files' && [from.certPath, from.keyPath, from.rootPath].some(path => isWithin(path, outputDir))) {
			log.warn({outputDir}, 'certificates are not written out: they come from that directory');
			return undefined;
		}
		const write = (certificate: WorkloadCertificate) => writeOutput(outputDir, certificate, outputKeyMode);
		return startKeeper({what: `certificate for other programs in ${outputDir}`, write, clock, random, log});
	}
}

function startSource(deps: SourceDeps): Promise<Source> {
	const {source} = deps.config;
	switch (source.kind) {
		case 'control-plane':
			return startControlPlaneSource(deps);
		case 'files':
			return startFilesSource(source, deps);
		case 'sds':
			return startSdsSource(source, deps);
	}
}

function isWithin(path: string, dir: string): boolean {
	return resolve(path).startsWith(`${resolve(dir)}/`);
}

function renderStatus(
	stateDir: string,
	served: ServedCertificate,
	source: Source,
	outputWarning: string | undefined,
	now: Date,
): IdentityStatus {
	const status = source.status();
	const {latest} = served;
	const warnings = [...served.warnings, ...status.warnings, clockWarning(latest, now), outputWarning];
	return {
		state: stateOf(latest, status, now),
		spiffeId: latest?.spiffeId,
		serial: latest?.serial,
		notBefore: latest?.notBefore,
		notAfter: latest?.notAfter,
		nextRotationAt: status.nextAttemptAt,
		origin: latest?.origin,
		generation: latest?.generation,
		lastError: status.lastError,
		attempts: status.attempts,
		tokenlessRenewal: status.tokenlessRenewal,
		tokenlessRenewalReason: status.tokenlessRenewalReason,
		rootCount: served.rootCount,
		stateDir,
		warnings: [...new Set(warnings.filter(warning => warning !== undefined))],
	};
}
