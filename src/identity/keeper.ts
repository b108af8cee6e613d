import {reasonOf} from '../errors.ts';
import {Backoff, type Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';

export interface Keeper<T> {
	/** Hands in the newest value; an older one not written yet is dropped. */
	put(value: T): void;
	/** Why the newest is not on disk, or undefined. */
	warning(): string | undefined;
	/** Waits for a write in progress and gives up on what failed. */
	stop(): Promise<void>;
}

export interface KeeperDeps<T> {
	/** `certificate` or the like, for the warning. */
	readonly what: string;
	readonly write: (value: T) => Promise<void>;
	readonly clock: Clock;
	readonly random: () => number;
	readonly log: Logger;
}

/** A full disk is emptied by people, so minutes are soon enough. */
const backoff = {baseMs: 5_000, maxMs: 300_000};

/**
 * Writes the newest value to disk beside the work that made it: a disk that is full, read-only or hanging costs a
 * warning, and what is served from memory goes on being served.
 */
export function startKeeper<T>({what, write, clock, random, log}: KeeperDeps<T>): Keeper<T> {
	const waits = new Backoff(backoff, clock, random);
	let pending: {readonly value: T} | undefined;
	let working: Promise<void> | undefined;
	let warning: string | undefined;
	let isStopped = false;
	let wake = new AbortController();

	const work = async (): Promise<void> => {
		while (pending && !isStopped) {
			const job = pending;
			const {signal} = wake;
			try {
				await write(job.value);
				if (pending === job) pending = undefined;
				if (warning !== undefined) log.info(`${what} written after all`);
				warning = undefined;
				waits.reset();
			} catch (err) {
				const text = `${what} not written: ${reasonOf(err)}`;
				if (text !== warning) log.warn({err}, `${what} not written, will try again`);
				warning = text;
				await clock.sleep(waits.nextDelayMs(), signal).catch(() => {}); // woken by a newer value or the end
			}
		}
		// In the same turn as the look for more, or a value that comes right after it would wait for the next one.
		working = undefined;
	};
	const interrupt = (): void => {
		wake.abort();
		wake = new AbortController();
	};

	return {
		put: value => {
			pending = {value};
			interrupt();
			working ??= work();
		},
		warning: () => warning,
		stop: async () => {
			isStopped = true;
			interrupt();
			await working;
		},
	};
}
