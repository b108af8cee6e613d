import {isDeepStrictEqual} from 'node:util';
import {reasonOf} from '../errors.ts';
import {Backoff, type Clock, type Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import type {CloudName} from './detect.ts';
import type {KeptFacts} from './kept.ts';
import type {CloudFacts} from './providers.ts';

export interface CloudStatus {
	readonly cloud: CloudName;
	/** `kept`: from an earlier run; the service has not answered yet. */
	readonly state: 'asking' | 'kept' | 'known';
	readonly locality?: string;
	readonly instanceId?: string;
	readonly instanceType?: string;
	readonly address?: string;
	readonly reason?: string;
}

export interface Cloud extends Running {
	current(): CloudFacts | undefined;
	/** Waits until something is known, or long enough; says so when it goes on without. */
	untilKnown(signal: AbortSignal): Promise<void>;
	status(): CloudStatus;
}

export interface CloudDeps {
	readonly cloud: CloudName;
	/** How long {@link Cloud.untilKnown} waits. */
	readonly waitMs: number;
	readonly fetch: (signal: AbortSignal) => Promise<CloudFacts>;
	/** Of this machine and this cloud. */
	readonly kept: CloudFacts | undefined;
	readonly save: (facts: CloudFacts) => Promise<void>;
	/** What was known before is otherwise, or something is known at last. */
	readonly onChange: (facts: CloudFacts) => void;
	readonly clock: Clock;
	/** In [0, 1). */
	readonly random: () => number;
	readonly log: Logger;
}

const backoffSettings = {baseMs: 1000, maxMs: 300_000};

/** Asks the cloud until it has answered once: a machine does not move while it runs. */
export function startCloud({cloud, waitMs, fetch, kept, save, onChange, clock, random, log}: CloudDeps): Cloud {
	const stopping = new AbortController();
	const {signal} = stopping;
	const backoff = new Backoff(backoffSettings, clock, random);
	let facts = kept;
	let isFresh = false;
	let reason: string | undefined;
	const known = Promise.withResolvers<void>();
	if (kept) known.resolve();

	const learn = async (next: CloudFacts): Promise<void> => {
		isFresh = true;
		reason = undefined;
		const isNew = !isDeepStrictEqual(next, facts);
		facts = next;
		known.resolve();
		if (!isNew) return;
		log.info({...next}, 'the cloud has said where this machine is');
		onChange(next);
		await save(next).catch((err: unknown) => log.warn({err}, 'what the cloud said is not kept over a reboot'));
	};

	const ask = async (): Promise<void> => {
		for (;;) {
			try {
				await learn(await fetch(signal));
				return;
			} catch (error) {
				signal.throwIfAborted();
				if (reason === undefined) log.debug({cloud, reason: reasonOf(error)}, 'the metadata service does not answer');
				reason = reasonOf(error);
				await clock.sleep(backoff.nextDelayMs(), signal);
			}
		}
	};
	const asking = ask().catch((error: unknown) => {
		if (!signal.aborted) throw error;
	});

	return {
		// Having been told is no end.
		finished: asking.then(() => new Promise<never>(() => {})),
		current: () => facts,
		untilKnown: async giveUp => {
			const enough = new AbortController();
			const late = clock.sleep(waitMs, AbortSignal.any([enough.signal, giveUp])).then(
				() => true,
				() => false,
			);
			const isLate = await Promise.race([late, known.promise.then(() => false)]);
			enough.abort();
			if (isLate)
				log.warn(
					{
						cloud,
						waitMs,
						reason,
						hint: 'workload.cloud: off, or workload.locality, if this machine has no metadata service',
					},
					'the metadata service has not answered: going on without locality, which counts when it is known',
				);
		},
		status: () => ({
			cloud,
			state: isFresh ? 'known' : facts ? 'kept' : 'asking',
			...facts,
			...(reason !== undefined && {reason}),
		}),
		stop: async () => {
			stopping.abort();
			await asking;
		},
	};
}

/** What was kept, if it is of this cloud and this machine. */
export function trustKept(
	kept: KeptFacts | undefined,
	cloud: CloudName,
	isOther: (marks: unknown) => boolean,
): CloudFacts | undefined {
	return kept && kept.facts.cloud === cloud && !isOther(kept.marks) ? kept.facts : undefined;
}
