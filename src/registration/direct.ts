import type {RegistrationConfig} from '../config/types.ts';
import {AgentError, type ErrorCode, reasonOf} from '../errors.ts';
import {Backoff, type Clock, type Gate} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import type {EntryHealth} from './direct-entry.ts';
import {keepEntry, type PassDeps, removeEntry} from './direct-pass.ts';
import type {EntryFinding} from './entry-finding.ts';
import {type Registration, type RegistrationState, type RegistrationStatus, workloadEntryName} from './registration.ts';

/** What is to become of our entry now. */
export type Wish =
	| {readonly kind: 'present'}
	| {
			readonly kind: 'absent';
			readonly reason: string;
			readonly hint: string;
			/** Somebody has said so: the agent does its job, and a start must not wait for an application that is started after it. */
			readonly isAsked: boolean;
	  }
	/** It stays as it is, whatever that may be. */
	| {readonly kind: 'wait'; readonly reason: string; readonly hint?: string};

export interface DirectStatus extends RegistrationStatus {
	/** Annotation of our entries: which machine we are. */
	readonly instance: string;
	/** Failures since the last success. */
	readonly attempts: number;
	readonly nextAttemptAt: Date | undefined;
}

export interface DirectRegistration extends Registration {
	status(): DirectStatus;
	/** How we are; written into the entry, and written again each time it is said. */
	report(health: EntryHealth): void;
	/** Nothing is waited for any longer. */
	checkNow(): void;
}

export interface DirectDeps extends Omit<PassDeps, 'group' | 'now'> {
	readonly config: Extract<RegistrationConfig, {mode: 'direct'}>;
	/** The one we register with. */
	readonly address: () => string;
	/** Asked again with each {@link Registration.look}. */
	readonly wish: () => Wish;
	/** What the mesh shows of our entry; undefined while nothing is known. */
	readonly finding: () => EntryFinding | undefined;
	/** Called before the entry is taken away: what requests under way are served with may go with it. */
	readonly onLeaving: () => void;
	/** Resolves when the mesh sends nothing here any more, as far as can be seen. */
	readonly untilLeft: (signal: AbortSignal) => Promise<void>;
	/** Ends the stream to the control plane: last. */
	readonly endStream: () => void;
	/** False: the next agent goes on with the same Envoy, and with the entry. */
	readonly isEnded: boolean;
	readonly gate: Gate;
	readonly clock: Clock;
	/** In [0, 1). */
	readonly random: () => number;
	readonly log: Logger;
}

interface Problem {
	readonly code: ErrorCode | undefined;
	readonly message: string;
	readonly hint: string | undefined;
}

/** As those of the stream to istiod. */
const backoffSettings = {baseMs: 1000, maxMs: 60_000};
/** How long a stop waits for the API, and then for the word to spread. */
const farewellMs = 3000;

/** Of the API or of the way to it: it may pass by itself, and says nothing about the entry. */
const passing: ReadonlySet<string> = new Set<ErrorCode>([
	'kubernetes.unreachable',
	'kubernetes.untrusted',
	'kubernetes.conflict',
	'kubernetes.failed',
]);

/** Writes our WorkloadEntry through the Kubernetes API, keeps it right, and takes it away when we go. */
export function startDirectRegistration(deps: DirectDeps): DirectRegistration {
	const {config, own, address, gate, clock, random, log} = deps;
	const {namespace, metadata} = deps.workload();
	const pass: PassDeps = {...deps, group: config.group, now: () => clock.now()};
	const stopping = new AbortController();
	const {signal} = stopping;
	const backoff = new Backoff(backoffSettings, clock, random);
	const nameOf = (at: string) =>
		config.entryName ?? workloadEntryName(config.group, at, metadata['NETWORK'] || undefined);
	const entry = () => `${namespace}/${nameOf(address())}`;

	// An agent before this one may have made it.
	let state: RegistrationState = own.list().includes(entry()) ? 'away' : 'connecting';
	let since = clock.now();
	let sinceMs = clock.monotonicMs();
	let confirmedUntil: Date | undefined;
	let problem: Problem | undefined;
	let toldOf = '';
	let nextAttemptAt: Date | undefined;
	let health: EntryHealth | undefined;
	let isHealthDue = false;
	let wake = new AbortController();
	let seen = '';
	let isReclaimToldOf = false;
	let leaving: Promise<void> | undefined;

	const enter = (next: RegistrationState, what: string = next): void => {
		if (next !== state) {
			since = clock.now();
			sinceMs = clock.monotonicMs();
			if (state === 'registered') confirmedUntil = since;
			if (next === 'registered') confirmedUntil = undefined;
			state = next;
			if (next === 'registered' || next === 'withdrawn') log.info({entry: entry(), address: address()}, what);
		}
		show();
	};

	const explain = (): {reason: string | undefined; hint: string | undefined} => {
		const wish = deps.wish();
		if (problem) return {reason: problem.message, hint: problem.hint};
		if (wish.kind !== 'present') return {reason: wish.reason, hint: wish.hint};
		if (state === 'registered') return {reason: undefined, hint: undefined};
		return {reason: 'the Kubernetes API has not answered yet', hint: undefined};
	};

	const summary = (): string => {
		const {reason} = explain();
		if (state === 'registered') return deps.finding()?.summary ?? state;
		return state === 'refused' || state === 'withdrawn' ? `${state}: ${reason}` : state;
	};

	const show = (): void => {
		const wish = deps.wish();
		const {reason = '', hint} = explain();
		if (wish.kind === 'absent' && wish.isAsked)
			gate.open(problem ? `${entry()} cannot be taken away: ${reason}` : `not registered: ${reason}`);
		else if (state === 'registered') gate.open(`${entry()} at ${address()}: ${summary()}`);
		// The entry lives without us and the API; traffic goes on.
		else if (state === 'away') {
			const until = confirmedUntil ? ` since ${confirmedUntil.toISOString()}` : '';
			gate.open(`${entry()}, not confirmed${until}: ${reason}`);
		} else gate.close(reason, hint);
	};

	const fail = (error: unknown): void => {
		const code = error instanceof AgentError ? error.code : undefined;
		const hint = error instanceof AgentError ? error.hint : undefined;
		problem = {code, message: reasonOf(error), hint};
		const wasThere = state === 'registered' || state === 'away';
		if (code === 'registration.group_missing') enter('waiting for group');
		else if (code === 'registration.entry_foreign' || code === 'registration.service_account') enter('refused');
		else if (wasThere) enter('away');
		else enter(code === undefined || passing.has(code) ? 'connecting' : 'refused');
		// What hinders may change its words from one try to the next; what refuses says something new.
		const telling = code !== undefined && passing.has(code) ? code : problem.message;
		if (telling !== toldOf) log.warn({err: error, entry: entry()}, 'the WorkloadEntry is not as it should be');
		toldOf = telling;
	};

	const succeed = (): void => {
		if (problem) log.info({entry: entry()}, 'the Kubernetes API does what it is asked again');
		problem = undefined;
		toldOf = '';
		backoff.reset();
	};

	const keep = async (): Promise<void> => {
		const at = address();
		const [told, wasDue] = [health, isHealthDue];
		isHealthDue = false;
		const target = {name: nameOf(at), address: at, health: told, isHealthDue: wasDue};
		const done = await keepEntry(pass, target, signal).catch((error: unknown) => {
			isHealthDue ||= wasDue;
			throw error;
		});
		succeed();
		if (done !== 'kept' && state === 'registered')
			log.info(
				{entry: entry(), address: at},
				done === 'created' ? 'the entry was not there: made' : 'the entry was put right',
			);
		enter('registered', done === 'created' ? 'registered' : 'registered: the entry was there already');
	};

	/** @param except - the one that is to stay */
	const removeAll = async (except: string | undefined, limit: AbortSignal): Promise<void> => {
		const names = new Set([...own.list(), ...(except === undefined ? [entry()] : [])]);
		for (const each of names) {
			if (each === except) continue;
			await removeEntry(pass, each, limit);
			if (except !== undefined) log.info({entry: each}, 'an entry of ours that is no longer used was deleted');
		}
	};

	/** Entries of an address or a name that we had before: callers are sent to where nobody is. */
	const reclaim = async (): Promise<void> => {
		try {
			await removeAll(entry(), signal);
			isReclaimToldOf = false;
		} catch (err) {
			signal.throwIfAborted();
			// Ours is right all the same; with the next check it is tried again.
			if (!isReclaimToldOf) log.warn({err, entries: own.list()}, 'an entry that we had before cannot be deleted');
			isReclaimToldOf = true;
		}
	};

	const run = async (): Promise<void> => {
		for (;;) {
			wake = new AbortController();
			const wish = deps.wish();
			seen = `${wish.kind} ${address()}`;
			let waitMs = config.checkMs * (0.75 + random() / 2);
			try {
				if (wish.kind === 'present') {
					await keep();
					await reclaim();
				} else if (wish.kind === 'absent') {
					await removeAll(undefined, signal);
					succeed();
					enter('withdrawn');
				} else show();
			} catch (error) {
				signal.throwIfAborted();
				fail(error);
				waitMs = backoff.nextDelayMs();
			}
			nextAttemptAt = problem && new Date(clock.now().getTime() + waitMs);
			// Whoever has stopped us has ended the wait, too.
			await clock.sleep(waitMs, AbortSignal.any([wake.signal, signal])).catch(() => signal.throwIfAborted());
		}
	};

	const look = (): void => {
		if (signal.aborted) return;
		const wish = deps.wish();
		if (`${wish.kind} ${address()}` !== seen) wake.abort();
		show();
	};

	const leave = async (): Promise<void> => {
		stopping.abort();
		await finished;
		deps.onLeaving();
		const enough = new AbortController();
		const late = clock.sleep(farewellMs, enough.signal).then(
			() => enough.abort(),
			() => {}, // All is done.
		);
		try {
			await removeAll(undefined, enough.signal);
			problem = undefined;
			enter('withdrawn', 'withdrawn');
			await deps.untilLeft(enough.signal);
		} catch (error) {
			const reason = enough.signal.aborted ? `no answer within ${farewellMs / 1000} s` : reasonOf(error);
			log.warn(
				{
					entry: entry(),
					reason,
					hint: `the next start takes it over; else: kubectl delete workloadentry -n ${namespace} ${nameOf(address())}`,
				},
				'the WorkloadEntry is left behind, and callers may still be sent here',
			);
		}
		enough.abort();
		await late;
	};

	const leaveOnce = (): Promise<void> => {
		leaving ??= leave();
		return leaving;
	};

	const finished = run().catch((error: unknown) => {
		if (!signal.aborted) throw error;
	});
	show();
	return {
		finished,
		status: () => {
			const found = state === 'registered' ? deps.finding() : undefined;
			const problems = (found?.problems ?? []).map(({what, hint}) => ({what, hint}));
			return {
				state,
				summary: summary(),
				proof: found?.proof,
				problems,
				entry: entry(),
				group: config.group,
				address: address(),
				...explain(),
				since,
				confirmedUntil,
				instance: own.instance,
				attempts: backoff.attempts,
				nextAttemptAt,
			};
		},
		look,
		checkNow: () => wake.abort(),
		report: next => {
			health = next;
			isHealthDue = true;
			wake.abort();
		},
		entry,
		registeredForMs: () => (state === 'registered' ? clock.monotonicMs() - sinceMs : undefined),
		leave: leaveOnce,
		stop: async () => {
			stopping.abort();
			await finished;
			if (deps.isEnded) await leaveOnce();
			deps.endStream();
		},
	};
}
