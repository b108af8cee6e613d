import type {IdentityConfig} from '../config/types.ts';
import {AgentError, reasonOf, systemCode} from '../errors.ts';
import {systemFs} from '../lifecycle/atomic-file.ts';
import type {Clock} from '../lifecycle/index.ts';
import {acquireLock, type Lock} from '../lifecycle/lock.ts';
import {type VerifiedPair, verifyPair} from './certificate.ts';
import {openStore, prepareStateDir, type StoredGeneration, type StoredPair, stateError} from './store.ts';
import type {IdentityDeps} from './types.ts';

export interface Kept {
	readonly stored: StoredGeneration;
	readonly pair: VerifiedPair;
}

/** The state directory, held by this agent. */
export interface StateDir {
	/** The newest stored pair that is whole, ours and still valid. */
	readonly usable: Kept | undefined;
	/**
	 * Without one: the newest that was so when it was received. Its roots are good, and it is itself should it be the clock
	 * that is wrong.
	 */
	readonly outdated: Kept | undefined;
	/** Number of the newest generation, usable or not. */
	readonly newest: number;
	/** Why others were passed over; emptied when a new one has been saved. */
	readonly problems: readonly string[];
	warnings(): readonly string[];
	save(pair: StoredPair): Promise<void>;
	close(): Promise<void>;
}

/** The state directory, found usable and locked, but not read yet. */
export interface HeldState {
	/** Reads it, once. @throws AgentError identity.state_unusable */
	open(): Promise<StateDir>;
}

/**
 * Locks the directory. One that can only be read still serves a valid pair, with a warning; without such a pair there
 * is nothing to wait for, as every certificate would be lost with the process.
 * @throws AgentError identity.state_unusable, identity.state_locked
 */
export async function holdState(
	{stateDir: dir}: Pick<IdentityConfig, 'stateDir'>,
	workload: IdentityDeps['workload'],
	clock: Clock,
): Promise<HeldState> {
	await prepareStateDir(dir);
	let lock: Lock | undefined;
	let unwritable: unknown;
	try {
		lock = await acquireLock(`${dir}/lock`);
	} catch (error) {
		// Only the disk's refusals can be lived with; a lock that another agent holds cannot.
		if (error instanceof AgentError || systemCode(error) === undefined) throw error;
		unwritable = error;
	}
	let opened: Promise<StateDir> | undefined;
	const open = () => {
		opened ??= openState(dir, spiffeIdOf(workload), clock.now(), lock, unwritable);
		return opened;
	};
	if (unwritable) await open();
	return {open};
}

async function openState(
	dir: string,
	spiffeId: string,
	now: Date,
	held: Lock | undefined,
	refusal: unknown,
): Promise<StateDir> {
	const store = openStore(dir, systemFs);
	let lock = held;
	let unwritable = refusal;
	if (lock) {
		await store.removeLeftovers().catch((error: unknown) => {
			if (systemCode(error) === undefined) throw error;
			unwritable = error;
		});
	}
	const {generations, problems} = await store.load().catch(error => {
		throw stateError(dir, error);
	});
	const usable = choose(generations, spiffeId, now, problems);
	if (unwritable && !usable) {
		await lock?.release();
		throw stateError(dir, unwritable);
	}
	const outdated = usable ? undefined : chooseOutdated(generations, spiffeId);
	return {
		usable,
		outdated,
		newest: generations[0]?.number ?? 0,
		problems,
		warnings: () => (unwritable ? [`new certificates cannot be kept: ${stateError(dir, unwritable).message}`] : []),
		save: async pair => {
			lock ??= await acquireLock(`${dir}/lock`);
			await store.save(pair);
			unwritable = undefined;
			problems.length = 0;
		},
		close: async () => {
			await lock?.release();
		},
	};
}

function choose(
	generations: readonly StoredGeneration[],
	spiffeId: string,
	now: Date,
	problems: string[],
): Kept | undefined {
	for (const stored of generations) {
		if (stored.requestedSpiffeId !== spiffeId) {
			problems.push(
				`stored certificate ${stored.number} was asked for as ${stored.requestedSpiffeId}, not ${spiffeId}`,
			);
			continue;
		}
		try {
			return {stored, pair: verifyPair(stored, {now, spiffeId})};
		} catch (error) {
			problems.push(`stored certificate ${stored.number}: ${reasonOf(error)}`);
		}
	}
	return undefined;
}

function chooseOutdated(generations: readonly StoredGeneration[], spiffeId: string): Kept | undefined {
	for (const stored of generations) {
		if (stored.requestedSpiffeId !== spiffeId) continue;
		try {
			return {stored, pair: verifyPair(stored, {now: stored.receivedAt, spiffeId})};
		} catch {
			// Why, has been told: it was no better when it was received.
		}
	}
	return undefined;
}

/** The name that istiod gives a service account. */
export function spiffeIdOf({trustDomain, namespace, serviceAccount}: IdentityDeps['workload']): string {
	return `spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`;
}
