import type {IdentitySource} from '../config/types.ts';
import {AgentError, reasonOf, systemCode} from '../errors.ts';
import {Secret} from '../log.ts';
import {type PairExpectation, type VerifiedPair, verifyPair} from './certificate.ts';
import {describe, isWorthTelling} from './failure.ts';
import {fingerprint} from './fingerprint.ts';
import {readSmallFile} from './small-file.ts';
import type {Source, SourceDeps} from './source.ts';
import {spiffeIdOf} from './state-dir.ts';
import type {IdentityFailure} from './types.ts';

type Files = Extract<IdentitySource, {kind: 'files'}>;

const lookEveryMs = 1000;
/** Two files are never written at the same moment: a change has settled when it stays the same this long. */
const settleMs = 100;
/** A key and a chain that do not fit are looked at again for this long before it counts as a failure. */
const patienceMs = 10_000;
const retryEveryMs = 200;
const maxFileBytes = 1024 * 1024;

/** Certificates that something else keeps fresh in files. The old pair is served until a whole new one is there. */
export async function startFilesSource(files: Files, deps: SourceDeps): Promise<Source> {
	const {served, changed, count, clock, log, workload} = deps;
	const spiffeId = spiffeIdOf(workload);
	const stopping = new AbortController();
	let wake = new AbortController();
	let attempts = 0;
	let generation = 0;
	let lastError: IdentityFailure | undefined;
	let seen: string | undefined;
	/** The files whose failure was told last: one more failure of the same is not news, one of others is. */
	let toldOf: string | undefined;
	let reloading: Promise<void> | undefined;

	const look = async () => (await Promise.all([files.certPath, files.keyPath, files.rootPath].map(fingerprint))).join();

	const publish = (pair: VerifiedPair): void => {
		const before = served.latest;
		const isSame = before?.chainPem === pair.chainPem && before.keyPem.reveal() === pair.keyPem.reveal();
		if (!isSame) generation++;
		served.publish(pair, 'files', isSame ? before.receivedAt : clock.now(), generation);
		log.info({spiffeId: pair.spiffeId, serial: pair.serial, notAfter: pair.notAfter}, 'certificate loaded from files');
	};

	/** Reads until what was read is whole and did not change meanwhile. Rejects when patience is at its end. */
	const load = async (): Promise<void> => {
		const startMs = clock.monotonicMs();
		for (;;) {
			const before = await look();
			try {
				const pair = await readPair(files, {now: clock.now(), spiffeId});
				if ((await look()) === before) {
					seen = before;
					publish(pair);
					return;
				}
			} catch (error) {
				seen = before;
				if (clock.monotonicMs() - startMs >= patienceMs) throw error;
			}
			await clock.sleep(retryEveryMs, stopping.signal);
		}
	};

	const reload = (): Promise<void> => {
		reloading ??= load()
			.then(
				() => {
					attempts = 0;
					lastError = undefined;
					count('success');
				},
				(error: unknown) => {
					if (stopping.signal.aborted) return;
					attempts++;
					lastError = describe(error, clock.now());
					count('failure');
					if (seen !== toldOf || isWorthTelling(attempts))
						log.warn({err: error, attempts}, 'certificate files cannot be used, will look again');
					toldOf = seen;
					throw error;
				},
			)
			.finally(() => {
				reloading = undefined;
				changed();
			});
		return reloading;
	};

	const watch = async (): Promise<void> => {
		while (!stopping.signal.aborted) {
			const {signal} = wake;
			const now = await look();
			if (now !== seen || lastError) {
				await clock.sleep(settleMs, stopping.signal);
				// Noted by reload; the next round tries again, as files may become readable without changing.
				if ((await look()) === now) await reload().catch(() => {});
			}
			await clock.sleep(lookEveryMs, signal).catch(error => {
				if (!signal.aborted) throw error;
			});
		}
	};
	const finished = watch().catch((error: unknown) => {
		if (!stopping.signal.aborted) throw error;
	});
	const interrupt = (): void => {
		wake.abort();
		wake = new AbortController();
	};

	return {
		finished,
		status: () => ({
			attempts,
			lastError,
			nextAttemptAt: undefined,
			lockedOut: undefined,
			tokenlessRenewal: 'unknown',
			tokenlessRenewalReason: undefined,
			warnings: [],
		}),
		rotateNow: reload,
		retryNow: interrupt,
		stop: () => {
			stopping.abort(new Error('stopping'));
			interrupt();
			return finished;
		},
	};
}

async function readPair({certPath, keyPath, rootPath}: Files, expected: PairExpectation): Promise<VerifiedPair> {
	// One after the other, so that of several that are missing always the same is named.
	const chainPem = await readText(certPath);
	const key = await readText(keyPath);
	const rootsPem = await readText(rootPath);
	try {
		return verifyPair({chainPem, keyPem: new Secret(key), rootsPem}, expected);
	} catch (cause) {
		throw new AgentError(
			'identity.source_unusable',
			`use ${certPath}, ${keyPath} and ${rootPath}: ${reasonOf(cause)}`,
			{
				cause,
				hint: 'check what writes these files; the agent looks again by itself',
			},
		);
	}
}

async function readText(path: string): Promise<string> {
	try {
		return (await readSmallFile(path, maxFileBytes)).toString('utf8');
	} catch (cause) {
		const isAbsent = systemCode(cause) === 'ENOENT';
		throw new AgentError('identity.source_unusable', `read ${path}: ${isAbsent ? 'no such file' : reasonOf(cause)}`, {
			cause,
			hint: isAbsent
				? `something else is to write ${path}; the agent waits for it`
				: `make ${path} readable for the user the agent runs as`,
		});
	}
}
