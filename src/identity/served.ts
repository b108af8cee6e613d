import type {Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {mergeRoots, type VerifiedPair} from './certificate.ts';
import type {CertificateOrigin, WorkloadCertificate} from './types.ts';

/**
 * What is served: the newest pair and the union of its roots with those from elsewhere. Every change goes through
 * here, so nobody ever sees a key without its chain.
 */
export class ServedCertificate {
	readonly #clock: Clock;
	readonly #log: Logger;
	readonly #listeners = new Set<(certificate: WorkloadCertificate) => void>();
	#latest: WorkloadCertificate | undefined;
	#issuerRoots: readonly string[] = [];
	#additionalRoots: readonly string[] = [];
	#pairWarnings: readonly string[] = [];

	constructor(clock: Clock, log: Logger) {
		this.#clock = clock;
		this.#log = log;
	}

	/** The newest, expired or not. */
	get latest(): WorkloadCertificate | undefined {
		return this.#latest;
	}

	get warnings(): readonly string[] {
		return this.#pairWarnings;
	}

	get rootCount(): number {
		return this.#mergedRoots().length;
	}

	/** All that is trusted, also while there is no certificate: our own running out says nothing about the mesh's roots. */
	get trustBundlePem(): string {
		return this.#mergedRoots().join('');
	}

	current(): WorkloadCertificate | undefined {
		return this.#latest && this.#latest.notAfter > this.#clock.now() ? this.#latest : undefined;
	}

	publish(pair: VerifiedPair, origin: CertificateOrigin, receivedAt: Date, generation: number): WorkloadCertificate {
		const {rootsPem, warnings, ...rest} = pair;
		this.#issuerRoots = rootsPem;
		this.#pairWarnings = warnings;
		this.#latest = {...rest, origin, receivedAt, generation, trustBundlePem: this.trustBundlePem};
		this.tell();
		return this.#latest;
	}

	/** Blocks that are not certificates are left out: one broken root must not take the others away. */
	setAdditionalRoots(rootsPem: readonly string[]): void {
		this.#additionalRoots = mergeRoots(rootsPem, why => this.#log.warn({why}, 'additional root left out'));
		if (!this.#latest) return;
		const {trustBundlePem} = this;
		if (trustBundlePem === this.#latest.trustBundlePem) return;
		this.#latest = {...this.#latest, trustBundlePem};
		this.#log.info({rootCount: this.rootCount}, 'trust bundle changed');
		this.tell();
	}

	onChange(listener: (certificate: WorkloadCertificate) => void): () => void {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	/** Says what is served, if that is still within its life. */
	tell(): void {
		const certificate = this.current();
		if (!certificate) return;
		for (const listener of this.#listeners) {
			try {
				listener(certificate);
			} catch (err) {
				// A listener that fails must not keep the others, or the rotation, from going on.
				this.#log.error({err}, 'listener for certificates failed');
			}
		}
	}

	#mergedRoots(): string[] {
		return [...new Set([...this.#issuerRoots, ...this.#additionalRoots])].sort();
	}
}
