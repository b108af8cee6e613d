import type {AgentError} from '../errors.ts';
import type {Running} from '../lifecycle/index.ts';
import type {ServedCertificate} from './served.ts';
import type {IdentityDeps, IdentityFailure, TokenlessRenewal} from './types.ts';

/** Where certificates come from: the control plane, files, or another SDS server. It publishes; identity serves. */
export interface Source extends Running {
	status(): SourceStatus;
	rotateNow(): Promise<void>;
	retryNow(): void;
}

export interface SourceStatus {
	readonly attempts: number;
	readonly lastError: IdentityFailure | undefined;
	readonly nextAttemptAt: Date | undefined;
	/** Why there is nothing to authenticate with; undefined unless locked out. */
	readonly lockedOut: AgentError | undefined;
	readonly tokenlessRenewal: TokenlessRenewal;
	readonly tokenlessRenewalReason: string | undefined;
	readonly warnings: readonly string[];
}

export interface SourceDeps extends IdentityDeps {
	/** Where new pairs are published. */
	readonly served: ServedCertificate;
	/** Called after anything that `status()` shows has changed. */
	readonly changed: () => void;
	readonly count: (result: 'success' | 'failure' | 'trial_failure') => void;
}
