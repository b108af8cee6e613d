import type {IdentityConfig, WorkloadConfig} from '../config/types.ts';
import type {ErrorCode} from '../errors.ts';
import type {Clock, Gate, Metrics, Running} from '../lifecycle/index.ts';
import type {Logger, Secret} from '../log.ts';
import type {HeldState} from './state-dir.ts';
import type {TokenSource} from './token-source.ts';

/** A key, the certificate chain for it and the roots that came with it: always whole, never changed in place. */
export interface WorkloadCertificate {
	readonly spiffeId: string;
	/** Serial number of the leaf, upper-case hex. */
	readonly serial: string;
	readonly notBefore: Date;
	readonly notAfter: Date;
	/** When this agent got it; of stored and mounted certificates, when it was first seen. */
	readonly receivedAt: Date;
	/**
	 * Leaf first, then intermediates; newline-terminated PEM blocks. Roots are left out: a peer trusts only the roots
	 * it already has, so sending ours would cost bytes in every handshake and prove nothing.
	 */
	readonly chainPem: string;
	readonly keyPem: Secret;
	/** Root certificates, one PEM block each, sorted and without duplicates. Never empty. */
	readonly trustBundlePem: string;
	readonly origin: CertificateOrigin;
	/** Counts up with each new pair; a change of roots alone keeps it. */
	readonly generation: number;
}

export type CertificateOrigin = 'control-plane' | 'disk' | 'files' | 'sds';

export interface CertificateRequest {
	readonly csrPem: string;
	/** Wanted life; the control plane may give less. */
	readonly lifetimeMs: number;
	readonly certSigner: string;
	/** `certificate-only`: the bootstrap token must not be sent, so that the answer tells whether it is still needed. */
	readonly auth: 'any' | 'certificate-only';
}

/**
 * Asks the control plane to sign. Resolves with `cert_chain` as received: PEM texts, leaf first, the last holding the
 * root bundle. Rejects with an AgentError whose code says what kind of refusal it was.
 */
export type RequestCertificate = (request: CertificateRequest, signal: AbortSignal) => Promise<readonly string[]>;

/**
 * - `awaiting-certificate`: none yet, trying
 * - `serving`: a valid one is served and the last attempt to rotate, if any, worked
 * - `serving-stale`: a valid one is served, rotation is failing
 * - `expired`: the last one ran out, trying
 * - `locked-out`: no valid certificate and no usable token; nothing is sent until a token appears
 */
export type IdentityState = 'awaiting-certificate' | 'serving' | 'serving-stale' | 'expired' | 'locked-out';

/** Whether the control plane renews by certificate alone, which decides if the token must be kept fresh. */
export type TokenlessRenewal = 'unknown' | 'trying' | 'works' | 'refused';

export interface IdentityStatus {
	readonly state: IdentityState;
	readonly spiffeId?: string | undefined;
	readonly serial?: string | undefined;
	readonly notBefore?: Date | undefined;
	readonly notAfter?: Date | undefined;
	/** The next attempt, be it a planned rotation or a retry. */
	readonly nextRotationAt?: Date | undefined;
	readonly origin?: CertificateOrigin | undefined;
	readonly generation?: number | undefined;
	readonly lastError?: IdentityFailure | undefined;
	/** Failed attempts since the last success. */
	readonly attempts: number;
	readonly tokenlessRenewal: TokenlessRenewal;
	/** Why, in words, for `refused` and a trial that is repeated. */
	readonly tokenlessRenewalReason?: string | undefined;
	readonly rootCount: number;
	readonly stateDir: string;
	readonly warnings: readonly string[];
}

export interface IdentityFailure {
	readonly code: ErrorCode;
	readonly message: string;
	readonly hint?: string | undefined;
	readonly at: Date;
}

export interface Identity extends Running {
	/** What to present now; undefined before the first, and never one that the wall clock says has expired. */
	current(): WorkloadCertificate | undefined;
	/** Every root that is known, PEM, also while there is no certificate to present; '' before the first. */
	trustBundlePem(): string;
	/** Calls back on each new pair or new set of roots, and when one has become valid by the clock. Returns how to stop that. */
	onChange(listener: (certificate: WorkloadCertificate) => void): () => void;
	/** Roots from elsewhere (the mesh's own trust bundle), added to those that came with the certificate. */
	setAdditionalRoots(rootsPem: readonly string[]): void;
	/** Rotates at once. Joins an attempt in flight; rejects with why it failed. */
	rotateNow(): Promise<void>;
	/** Cuts the wait before the next retry short; does nothing when no retry is pending. */
	retryNow(): void;
	status(): IdentityStatus;
}

export interface IdentityDeps {
	readonly config: IdentityConfig;
	readonly workload: Pick<WorkloadConfig, 'trustDomain' | 'namespace' | 'serviceAccount'>;
	readonly token: TokenSource;
	readonly requestCertificate: RequestCertificate;
	readonly clock: Clock;
	/** In [0, 1). */
	readonly random: () => number;
	readonly log: Logger;
	readonly gate: Gate;
	readonly metrics: Metrics;
	/** Locked already, see `holdState`; otherwise that is done where it is needed. */
	readonly state?: HeldState | undefined;
}
