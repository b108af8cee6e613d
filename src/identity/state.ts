import {notYetValid} from './certificate.ts';
import type {SourceStatus} from './source.ts';
import type {IdentityState, WorkloadCertificate} from './types.ts';

/** The state follows from what is there; nothing has to remember it. */
export function stateOf(
	latest: WorkloadCertificate | undefined,
	{lastError, lockedOut}: Pick<SourceStatus, 'lastError' | 'lockedOut'>,
	now: Date,
): IdentityState {
	if (latest && latest.notAfter > now) return lastError ? 'serving-stale' : 'serving';
	if (lockedOut) return 'locked-out';
	return latest ? 'expired' : 'awaiting-certificate';
}

export interface GateText {
	readonly isOpen: boolean;
	readonly reason: string;
	readonly hint: string | undefined;
}

/** What the readiness gate says: open as long as a valid certificate is served, however badly rotation goes. */
export function gateTextOf(
	state: IdentityState,
	latest: WorkloadCertificate | undefined,
	{lastError, lockedOut}: Pick<SourceStatus, 'lastError' | 'lockedOut'>,
): GateText {
	const until = latest?.notAfter.toISOString();
	const why = lastError ? `: ${lastError.message}` : '';
	switch (state) {
		case 'serving':
			return {isOpen: true, reason: `certificate valid until ${until}`, hint: undefined};
		case 'serving-stale':
			return {isOpen: true, reason: `certificate valid until ${until}, rotation fails${why}`, hint: lastError?.hint};
		case 'expired':
			return {isOpen: false, reason: `certificate expired at ${until}${why}`, hint: lastError?.hint};
		case 'awaiting-certificate':
			return {isOpen: false, reason: `no certificate yet${why}`, hint: lastError?.hint};
		case 'locked-out': {
			const past = until ? `the certificate expired at ${until}` : 'there is no certificate';
			return {isOpen: false, reason: `locked out: ${past}, and ${lockedOut?.message}`, hint: lockedOut?.hint};
		}
	}
}

/** A wall clock behind the certificate's begin: the peers' clocks decide, but somebody should set ours. */
export function clockWarning(latest: WorkloadCertificate | undefined, now: Date): string | undefined {
	return latest && latest.notBefore > now ? notYetValid(latest.notBefore, now) : undefined;
}
