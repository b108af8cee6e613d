import type {WorkloadConfig} from '../config/types.ts';
import {saysNo} from '../control-plane/refusals.ts';
import {type Clock, type Gate, never, type Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import type {UpstreamStatus} from '../relay/index.ts';
import type {EntryFinding, EntryProblem} from './entry-finding.ts';

/**
 * - `off`: no WorkloadGroup is set, nothing is registered by us
 * - `connecting`: the control plane has not answered yet
 * - `registered`: it has taken our stream, and with it our entry
 * - `away`: it was, and the control plane cannot be reached now. What became of the entry nobody here can know: an
 *   istiod that lives deletes it after its grace period, one that does not keeps it
 * - `withdrawn`: we have ended the stream ourselves, for want of Envoy or because we stop; or it is one that registers
 *   nothing, as `onramp unready` wants it
 * - `waiting for group`: there is no such WorkloadGroup yet
 * - `refused`: it said why not
 */
export type RegistrationState =
	| 'off'
	| 'connecting'
	| 'registered'
	| 'away'
	| 'withdrawn'
	| 'waiting for group'
	| 'refused';

export interface RegistrationStatus {
	readonly state: RegistrationState;
	/** In a line: the state, and of an entry that is there whether callers are sent to it. */
	readonly summary: string;
	/** What the mesh shows of our entry, or why it shows nothing; undefined while it is not registered. */
	readonly proof: string | undefined;
	/** What is wrong with the entry, as far as the mesh shows it. */
	readonly problems: readonly Pick<EntryProblem, 'what' | 'hint'>[];
	/** WorkloadEntry, `NAMESPACE/NAME`. */
	readonly entry: string | undefined;
	readonly group: string | undefined;
	readonly address: string;
	readonly reason: string | undefined;
	readonly hint: string | undefined;
	/** Wall-clock time of the last change of `state`. */
	readonly since: Date;
	/** Wall-clock time until which the entry was known to be there; undefined before the first, and while it is. */
	readonly confirmedUntil: Date | undefined;
}

export interface Registration extends Running {
	status(): RegistrationStatus;
	/** What it depends on besides the stream has changed. */
	look(): void;
	/** Takes us out of the mesh, whatever becomes of Envoy. */
	leave(): Promise<void>;
	/** How long istiod has had our stream; undefined while it has not. */
	registeredForMs(): number | undefined;
	/** `NAMESPACE/NAME`; undefined where there is none. */
	entry(): string | undefined;
}

export interface RegistrationDeps {
	readonly workload: WorkloadConfig;
	/** The one we register with. */
	readonly address: () => string;
	readonly upstream: () => UpstreamStatus;
	/** Wall-clock time of the saved configuration in use: proof that an agent before this one was registered then. */
	readonly savedAt: () => Date | undefined;
	readonly onUpstreamChange: (listener: () => void) => () => void;
	/** Why this machine is to stay out of load balancing although the stream is there; undefined = it is not. */
	readonly withheld: () => string | undefined;
	/** What is seen of our entry; undefined while nothing is. */
	readonly finding: () => EntryFinding | undefined;
	/** Takes us out of the mesh: called first on an orderly stop. */
	readonly withdraw: () => void;
	readonly gate: Gate;
	readonly clock: Clock;
	readonly log: Logger;
}

/**
 * The name istiod gives the entry: `GROUP-ADDRESS[-NETWORK]`, colons as dashes, cut to its last 253 characters
 * (Istio pilot/pkg/autoregistration).
 */
export function workloadEntryName(group: string, address: string, network: string | undefined): string {
	const name = [group, address.replaceAll(':', '-'), ...(network ? [network] : [])].join('-');
	return name.slice(-253);
}

/**
 * Pure: what an upstream status means for the registration that was `before`.
 * @param isWithheld - the stream is one that registers nothing
 */
export function nextState(
	before: RegistrationState,
	{state, lastError}: UpstreamStatus,
	isWithheld = false,
): RegistrationState {
	if (isWithheld) return 'withdrawn';
	if (state === 'connected') return 'registered';
	if (lastError?.code === 'control_plane.group_missing') return 'waiting for group';
	if (lastError && saysNo(lastError.code)) return 'refused';
	const wasTaken = before === 'registered' || before === 'away';
	// Whoever is away has not heard that we ended the stream.
	if (wasTaken) return state === 'idle' && before === 'registered' ? 'withdrawn' : 'away';
	return before === 'withdrawn' ? 'withdrawn' : 'connecting';
}

/**
 * Auto-registration: istiod writes our WorkloadEntry when our stream opens and takes it away after it closes, so being
 * registered is having a stream it has accepted. This part follows that and says what it means.
 */
export function startRegistration({
	workload,
	address,
	upstream,
	savedAt,
	onUpstreamChange,
	withheld,
	finding,
	withdraw,
	gate,
	clock,
	log,
}: RegistrationDeps): Registration {
	const {group, namespace} = workload;
	const network = workload.metadata['NETWORK'] || undefined;
	const entry = () =>
		group === undefined ? undefined : `${namespace}/${workloadEntryName(group, address(), network)}`;
	let state: RegistrationState = group === undefined ? 'off' : 'connecting';
	let since = clock.now();
	let sinceMs = clock.monotonicMs();
	let confirmedUntil: Date | undefined;

	const enter = (next: RegistrationState) => {
		if (next === state) return;
		since = clock.now();
		sinceMs = clock.monotonicMs();
		if (state === 'registered') confirmedUntil = since;
		if (next === 'registered') confirmedUntil = undefined;
		if (next === 'registered' || next === 'withdrawn') log.info({entry: entry(), address: address()}, next);
		// Why, the relay has told: it is the stream that was refused.
		else if (next === 'refused' || next === 'waiting for group')
			log.info({entry: entry(), address: address(), code: upstream().lastError?.code}, 'registration refused');
		state = next;
	};
	const look = () => {
		if (group === undefined) return;
		const status = upstream();
		const before = state === 'connecting' ? savedAt() : undefined;
		enter(nextState(before ? 'away' : state, status, withheld() !== undefined));
		if (before && state === 'away') confirmedUntil = before;
		// The agent does its job: a start must not wait for an application that is started after it.
		if (withheld() !== undefined) gate.open(`not registered: ${withheld()}`);
		else if (state === 'registered') gate.open(`${entry()} at ${address()}: ${summary()}`);
		// Traffic does not depend on it, and a fleet must not turn red because istiod is away.
		else if (state === 'away') gate.open(unconfirmed(entry(), confirmedUntil));
		else {
			const {reason = 'waiting for the control plane', hint} = explain();
			gate.close(reason, hint);
		}
	};
	const explain = (): {reason: string | undefined; hint: string | undefined} => {
		const {lastError} = upstream();
		if (state === 'off') return {reason: undefined, hint: undefined};
		if (withheld() !== undefined) return {reason: withheld(), hint: 'onramp ready'};
		if (state === 'registered') return {reason: undefined, hint: undefined};
		if (state === 'withdrawn' && !lastError) return {reason: withdrawnReason, hint: withdrawnHint};
		return {reason: lastError?.message, hint: lastError?.hint};
	};

	const summary = (): string => {
		if (state === 'registered') return finding()?.summary ?? state;
		const {reason} = explain();
		return state === 'refused' || state === 'withdrawn' ? `${state}: ${reason}` : state;
	};

	const stop = async (): Promise<void> => {
		unsubscribe();
		withdraw();
		// Envoy drains for a while yet, and who looks meanwhile is to know.
		if (group !== undefined) enter('withdrawn');
	};

	if (group === undefined) gate.open('not asked for: no WorkloadGroup is set');
	const unsubscribe = onUpstreamChange(look);
	look();
	return {
		finished: never,
		status: () => {
			const found = state === 'registered' ? finding() : undefined;
			const problems = (found?.problems ?? []).map(({what, hint}) => ({what, hint}));
			const {proof} = found ?? {proof: undefined};
			return {
				state,
				summary: summary(),
				proof,
				problems,
				entry: entry(),
				group,
				address: address(),
				...explain(),
				since,
				confirmedUntil,
			};
		},
		look,
		entry,
		registeredForMs: () => (state === 'registered' ? clock.monotonicMs() - sinceMs : undefined),
		leave: stop,
		stop,
	};
}

const withdrawnReason = 'this agent has ended its stream, so that nobody is sent here; istiod deletes the entry';
/** Of an entry that is taken away for want of Envoy. */
export const withdrawnHint =
	'there is no Envoy to take traffic: look at the gate proxy; registered again with the next Envoy';

function unconfirmed(entry: string | undefined, until: Date | undefined): string {
	const since = until ? ` since ${until.toISOString()}` : '';
	return `${entry}, not confirmed${since}: the control plane is away, or has deleted it`;
}
