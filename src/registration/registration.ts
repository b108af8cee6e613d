import type {WorkloadConfig} from '../config/types.ts';
import {type Clock, type Gate, never, type Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import type {UpstreamStatus} from '../relay/index.ts';

/**
 * - `off`: no WorkloadGroup is set, nothing is registered by us
 * - `connecting`: the control plane has not answered yet
 * - `registered`: it has taken our stream, and with it our entry
 * - `away`: it was, and the control plane cannot be reached now; istiod keeps the entry for its grace period
 * - `refused`: it said why not
 */
export type RegistrationState = 'off' | 'connecting' | 'registered' | 'away' | 'refused';

export interface RegistrationStatus {
	readonly state: RegistrationState;
	/** WorkloadEntry, `NAMESPACE/NAME`. */
	readonly entry: string | undefined;
	readonly group: string | undefined;
	readonly address: string;
	readonly reason: string | undefined;
	readonly hint: string | undefined;
	/** Wall-clock time of the last change of `state`. */
	readonly since: Date;
}

export interface Registration extends Running {
	status(): RegistrationStatus;
}

export interface RegistrationDeps {
	readonly workload: WorkloadConfig;
	readonly upstream: () => UpstreamStatus;
	readonly onUpstreamChange: (listener: () => void) => () => void;
	/** Takes us out of the mesh: called first on an orderly stop. */
	readonly withdraw: () => void;
	readonly gate: Gate;
	readonly clock: Clock;
	readonly log: Logger;
}

/** Refusals that mean "not registered"; any other failure says nothing about the entry. */
const refusals: ReadonlySet<string> = new Set([
	'control_plane.group_missing',
	'control_plane.permission_denied',
	'control_plane.node_refused',
	'control_plane.unauthenticated',
]);

/**
 * The name istiod gives the entry: `GROUP-ADDRESS[-NETWORK]`, colons as dashes, cut to its last 253 characters
 * (Istio pilot/pkg/autoregistration).
 */
export function workloadEntryName(group: string, address: string, network: string | undefined): string {
	const name = [group, address.replaceAll(':', '-'), ...(network ? [network] : [])].join('-');
	return name.slice(-253);
}

/** Pure: what an upstream status means for the registration that was `before`. */
export function nextState(before: RegistrationState, {state, lastError}: UpstreamStatus): RegistrationState {
	if (state === 'connected') return 'registered';
	if (lastError && refusals.has(lastError.code)) return 'refused';
	if (before === 'registered' || before === 'away') return 'away';
	return 'connecting';
}

/**
 * Auto-registration: istiod writes our WorkloadEntry when our stream opens and takes it away after it closes, so being
 * registered is having a stream it has accepted. This part follows that and says what it means.
 */
export function startRegistration({
	workload,
	upstream,
	onUpstreamChange,
	withdraw,
	gate,
	clock,
	log,
}: RegistrationDeps): Registration {
	const {group, namespace, addresses} = workload;
	const [address = ''] = addresses;
	const network = workload.metadata['NETWORK'] || undefined;
	const entry = group === undefined ? undefined : `${namespace}/${workloadEntryName(group, address, network)}`;
	let state: RegistrationState = group === undefined ? 'off' : 'connecting';
	let since = clock.now();

	const look = () => {
		if (group === undefined) return;
		const status = upstream();
		const next = nextState(state, status);
		if (next !== state) {
			since = clock.now();
			if (next === 'registered') log.info({entry, address}, 'registered');
			// Why, the relay has told: it is the stream that was refused.
			else if (next === 'refused') log.info({entry, address, code: status.lastError?.code}, 'registration refused');
		}
		state = next;
		if (state === 'registered') gate.open(`${entry} at ${address}`);
		else if (state === 'away') gate.open(`${entry}, last confirmed before the control plane went away`);
		else gate.close(status.lastError?.message ?? 'waiting for the control plane', status.lastError?.hint);
	};

	if (group === undefined) gate.open('not asked for: no WorkloadGroup is set');
	const unsubscribe = onUpstreamChange(look);
	look();
	return {
		finished: never,
		status: () => {
			const {lastError} = upstream();
			return {
				state,
				entry,
				group,
				address,
				reason: state === 'registered' || state === 'off' ? undefined : lastError?.message,
				hint: state === 'registered' || state === 'off' ? undefined : lastError?.hint,
				since,
			};
		},
		stop: async () => {
			unsubscribe();
			withdraw();
		},
	};
}
