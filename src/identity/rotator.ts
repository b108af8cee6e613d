import {AgentError} from '../errors.ts';
import {Backoff, type Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {describe, isWorthTelling} from './failure.ts';
import {type RotationPlan, rotateAt} from './schedule.ts';
import type {Source} from './source.ts';
import type {TokenWatch} from './token-watch.ts';
import type {CertificateRequest, IdentityFailure, TokenlessRenewal, WorkloadCertificate} from './types.ts';
import {within} from './within.ts';

export interface RotatorDeps {
	/** Gets, checks and publishes a new pair. Rejects with an AgentError and then has changed nothing. */
	readonly issue: (auth: CertificateRequest['auth'], signal: AbortSignal) => Promise<void>;
	/** What is served, while it is valid. */
	readonly current: () => WorkloadCertificate | undefined;
	readonly token: TokenWatch;
	readonly plan: RotationPlan;
	readonly retryMaxMs: number;
	readonly trialDelayMs: number;
	/** What is known from before about renewal without the token. */
	readonly tokenlessRenewal: TokenlessRenewal;
	/** Called after anything that `status()` shows has changed. */
	readonly changed: () => void;
	readonly count: (result: 'success' | 'failure' | 'trial_failure') => void;
	readonly clock: Clock;
	readonly random: () => number;
	readonly log: Logger;
}

const retryBaseMs = 1000;
/** How often the token is looked at while it could help, and how late a stepped wall clock is noticed otherwise. */
const tokenCheckMs = 1000;
const wallCheckMs = 10_000;
/** No answer is an answer: a call that hangs must not end rotation. */
const requestTimeoutMs = 60_000;
const trialRetryBaseMs = 60_000;
const trialRetryMaxMs = 3_600_000;

/** A time on both clocks; the first to reach it counts, so neither suspend nor a clock set back delays a rotation. */
interface Deadline {
	readonly wallMs: number;
	readonly monotonicMs: number;
}

type Step = {readonly kind: 'rotate' | 'retry' | 'trial'; readonly at: Deadline};

/**
 * Keeps the certificate fresh for ever. It never ends by itself: whatever is refused now may be granted later, by an
 * administrator's hand or a new token. The pair in use stays until `issue` has published another.
 */
export function startRotator(deps: RotatorDeps): Source {
	const rotator = new Rotator(deps);
	const finished = rotator.run();
	return {
		finished,
		status: () => rotator.status(),
		rotateNow: () => rotator.rotate(),
		retryNow: () => rotator.retryNow(),
		stop: () => {
			rotator.stop();
			return finished;
		},
	};
}

class Rotator {
	readonly #stopping = new AbortController();
	readonly #deps: RotatorDeps;
	readonly #backoff: Backoff;
	readonly #trialBackoff: Backoff;
	#wake = new AbortController();
	#rotation: Promise<void> | undefined;
	#trial: Promise<void> | undefined;
	#planned: {certificate: WorkloadCertificate; at: Deadline} | undefined;
	#retryAt: Deadline | undefined;
	#trialAt: Deadline | undefined;
	#lastError: IdentityFailure | undefined;
	#lockedOut: AgentError | undefined;
	#tokenlessRenewal: TokenlessRenewal;
	#tokenlessReason: string | undefined;

	constructor(deps: RotatorDeps) {
		this.#deps = deps;
		const {clock, random, retryMaxMs} = deps;
		this.#backoff = new Backoff({baseMs: retryBaseMs, maxMs: retryMaxMs}, clock, random);
		this.#trialBackoff = new Backoff({baseMs: trialRetryBaseMs, maxMs: trialRetryMaxMs}, clock, random);
		this.#tokenlessRenewal = deps.tokenlessRenewal;
		if (deps.current()) this.#scheduleTrial();
	}

	async run(): Promise<void> {
		while (!this.#stopping.signal.aborted) {
			const wake = this.#wake.signal; // taken before looking, so that nothing after the look is missed
			const step = this.#nextStep();
			this.#deps.changed();
			if (step && !(await this.#waitFor(step, wake))) continue;
			// Failures are noted where they happen; the next step depends on them.
			await (step?.kind === 'trial' ? this.#try() : this.rotate()).catch(() => {});
			if (this.#lockedOut) await this.#waitForToken();
		}
	}

	stop(): void {
		this.#stopping.abort(new Error('stopping'));
		this.#interrupt();
	}

	status(): ReturnType<Source['status']> {
		const step = this.#lockedOut ? undefined : this.#nextStep();
		return {
			attempts: this.#backoff.attempts,
			lastError: this.#lastError,
			nextAttemptAt: step && new Date(step.at.wallMs),
			lockedOut: this.#lockedOut,
			tokenlessRenewal: this.#tokenlessRenewal,
			tokenlessRenewalReason: this.#tokenlessReason,
			warnings: this.#deps.token.warnings(),
		};
	}

	/** Rotates, or joins the rotation in flight. */
	rotate(): Promise<void> {
		this.#rotation ??= this.#rotate().finally(() => {
			this.#rotation = undefined;
			this.#interrupt();
		});
		return this.#rotation;
	}

	retryNow(): void {
		if (!this.#retryAt && !this.#lockedOut) return;
		this.#retryAt &&= this.#deadlineIn(0);
		this.#interrupt();
	}

	/** What to do next and when; undefined is at once. */
	#nextStep(): Step | undefined {
		const certificate = this.#deps.current();
		if (this.#retryAt) return {kind: 'retry', at: this.#retryAt};
		if (!certificate) return undefined;
		const at = this.#plannedFor(certificate);
		if (this.#trialAt && this.#trialAt.monotonicMs < at.monotonicMs) return {kind: 'trial', at: this.#trialAt};
		return {kind: 'rotate', at};
	}

	/** Drawn once a certificate: a time drawn anew at each look would drift. */
	#plannedFor(certificate: WorkloadCertificate): Deadline {
		if (this.#planned?.certificate.generation !== certificate.generation) {
			const at = rotateAt(certificate, this.#deps.plan, this.#deps.random());
			this.#planned = {certificate, at: this.#deadlineIn(at.getTime() - this.#deps.clock.now().getTime())};
		}
		return this.#planned.at;
	}

	async #rotate(): Promise<void> {
		await this.#trial?.catch(() => {}); // one request at a time; a trial's outcome is noted there
		const token = await this.#deps.token.check();
		if (!this.#deps.current() && token.error) {
			this.#lockOut(token.error);
			throw token.error;
		}
		try {
			await this.#request('any');
		} catch (error) {
			this.#failed(error);
			throw error;
		}
		if (token.error) this.#provenTokenless();
		this.#scheduleTrial();
	}

	/** Asks once without the token, to know before it has expired whether it will be needed again. */
	async #try(): Promise<void> {
		if (this.#rotation) return this.#rotation; // one request at a time; the trial comes after it
		this.#trial = this.#tryTokenless().finally(() => {
			this.#trial = undefined;
		});
		return this.#trial;
	}

	async #tryTokenless(): Promise<void> {
		this.#trialAt = undefined;
		this.#tokenlessRenewal = 'trying';
		this.#deps.changed();
		try {
			await this.#request('certificate-only');
			this.#provenTokenless();
		} catch (error) {
			this.#trialFailed(error);
			throw error;
		}
	}

	async #request(auth: CertificateRequest['auth']): Promise<void> {
		const {clock, issue, count} = this.#deps;
		const limit = {ms: requestTimeoutMs, clock, stopping: this.#stopping.signal, unanswered};
		await within(limit, signal => issue(auth, signal));
		count('success');
		this.#backoff.reset();
		this.#retryAt = undefined;
		this.#lastError = undefined;
		this.#lockedOut = undefined;
	}

	#failed(error: unknown): void {
		if (this.#stopping.signal.aborted) return;
		const {clock, count, log, changed} = this.#deps;
		count('failure');
		this.#lockedOut = undefined;
		this.#lastError = describe(error, clock.now());
		this.#retryAt = this.#deadlineIn(this.#backoff.nextDelayMs());
		const fields = {err: error, attempts: this.#backoff.attempts, retryAt: new Date(this.#retryAt.wallMs)};
		log[isWorthTelling(this.#backoff.attempts) ? 'warn' : 'debug'](fields, 'no new certificate, will try again');
		changed();
	}

	#trialFailed(error: unknown): void {
		if (this.#stopping.signal.aborted) return;
		const {count, log, changed} = this.#deps;
		count('trial_failure');
		const {code, message} = describe(error, this.#deps.clock.now());
		this.#tokenlessReason = message;
		if (code === 'control_plane.unauthenticated' || code === 'control_plane.permission_denied') {
			this.#tokenlessRenewal = 'refused';
			log.warn({err: error}, 'the control plane does not renew without the token; keep the token file fresh');
		} else {
			this.#tokenlessRenewal = 'unknown';
			this.#trialAt = this.#deadlineIn(this.#trialBackoff.nextDelayMs());
			log.debug({err: error}, 'trial renewal without the token did not get an answer');
		}
		changed();
	}

	#provenTokenless(): void {
		if (this.#tokenlessRenewal !== 'works')
			this.#deps.log.info('the control plane renews by certificate, the token is not needed again');
		this.#tokenlessRenewal = 'works';
		this.#tokenlessReason = undefined;
		this.#trialAt = undefined;
	}

	#scheduleTrial(): void {
		if (this.#tokenlessRenewal !== 'unknown' || this.#trialAt) return;
		this.#trialAt = this.#deadlineIn(this.#deps.random() * this.#deps.trialDelayMs);
	}

	#lockOut(error: AgentError): void {
		// Not the message: that of an expired token tells the time.
		const isNew = this.#lockedOut?.code !== error.code;
		this.#lockedOut = error;
		this.#retryAt = undefined;
		this.#lastError = describe(error, this.#deps.clock.now());
		if (isNew) this.#deps.log.error({err: error}, 'locked out: no valid certificate and no usable token');
		this.#deps.changed();
	}

	/** Nothing is sent until the token can be used, somebody asks for it, or a clock set right makes the old pair valid. */
	async #waitForToken(): Promise<void> {
		while (!this.#stopping.signal.aborted) {
			await this.#nap(tokenCheckMs, this.#wake.signal);
			const {error} = await this.#deps.token.check();
			if (this.#deps.current()) {
				// What the token lacks matters no more.
				this.#lockedOut = undefined;
				this.#lastError = undefined;
			}
			if (!error || !this.#lockedOut) break;
			this.#lockOut(error);
		}
	}

	/** True when the time has come; false when something happened that asks for a new look. */
	async #waitFor({kind, at}: Step, wake: AbortSignal): Promise<boolean> {
		const {clock, token, current} = this.#deps;
		const certificate = current();
		while (!wake.aborted && current() === certificate) {
			const leftMs = Math.min(at.wallMs - clock.now().getTime(), at.monotonicMs - clock.monotonicMs());
			if (leftMs <= 0) return true;
			await this.#nap(Math.min(leftMs, kind === 'retry' ? tokenCheckMs : wallCheckMs), wake);
			if (kind === 'retry' && (await token.hasChanged())) this.#retryAt = this.#deadlineIn(0);
			if (kind === 'retry' && this.#retryAt !== at) return false;
		}
		return false;
	}

	/** Sleeps; ends early without an error when woken. */
	async #nap(ms: number, wake: AbortSignal): Promise<void> {
		await this.#deps.clock.sleep(ms, wake).catch(error => {
			if (!wake.aborted) throw error;
		});
	}

	#interrupt(): void {
		this.#wake.abort();
		this.#wake = new AbortController();
	}

	#deadlineIn(ms: number): Deadline {
		const {clock} = this.#deps;
		return {wallMs: clock.now().getTime() + ms, monotonicMs: clock.monotonicMs() + ms};
	}
}

function unanswered(): AgentError {
	return new AgentError(
		'control_plane.unreachable',
		`request certificate: no answer within ${requestTimeoutMs / 1000} s`,
	);
}
