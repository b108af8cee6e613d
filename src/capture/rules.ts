/** The tables of a family are apart: no rule of one ever sees a packet of the other. */
export type Family = 'ip' | 'ip6';

export const families: readonly Family[] = ['ip', 'ip6'];

/** Where a rule stands: the kernel's table and hook, or a chain of ours that others go on to. */
export type Chain =
	| 'raw_output'
	| 'mangle_prerouting'
	| 'mangle_divert'
	| 'mangle_output'
	| 'filter_input'
	| 'filter_output'
	| 'filter_outbound'
	| 'nat_prerouting'
	| 'nat_output'
	| 'nat_outbound';

/** Where a rule of ours redirects to. */
export interface Redirect {
	readonly family: Family;
	readonly port: number;
}

/**
 * All chains in the order in which they are made: what redirects comes last, so that a loader that cannot do all in
 * one step never redirects with half of the rest missing.
 */
export const chains: readonly Chain[] = [
	'raw_output',
	'mangle_divert',
	'mangle_prerouting',
	'mangle_output',
	'filter_outbound',
	'filter_input',
	'filter_output',
	'nat_outbound',
	'nat_prerouting',
	'nat_output',
];

/** A value that is wanted, or one that is not. */
export type Test<T> = {readonly is: T} | {readonly not: T};

/** Every field that is there must hold. Lists mean "one of", under `not` "none of". */
export interface Match {
	readonly protocol?: 'tcp' | 'udp';
	/** A `*` at the end stands for any rest. */
	readonly inInterface?: string;
	readonly outInterface?: string;
	readonly source?: Test<string>;
	readonly destination?: Test<string>;
	/** At most 15, the limit of iptables' multiport. */
	readonly destinationPort?: Test<readonly number[]>;
	/** At most 15. */
	readonly sourcePort?: readonly number[];
	/** Owner of the socket. `is` has one id, as iptables takes no more. */
	readonly uid?: Test<readonly number[]>;
	readonly gid?: Test<readonly number[]>;
	/** Below the root of cgroup v2, without a slash in front. */
	readonly cgroup?: string;
	readonly mark?: Test<number>;
	readonly connectionMark?: number;
	readonly state?: readonly ('new' | 'established' | 'related' | 'invalid' | 'untracked')[];
	/** The destination is an address of this machine, so the packet is not one to forward. */
	readonly isDestinationLocal?: boolean;
	/** The first packet of a TCP connection; false: a later one. */
	readonly isSyn?: boolean;
	/** Not the end of a connection by reset. */
	readonly isNoReset?: boolean;
	/** A rule has rewritten the destination of this connection: it was redirected. */
	readonly isRewritten?: boolean;
	/** A process still has the socket open. */
	readonly isOwned?: boolean;
	/** In the direction in which the connection was begun, as far as is known. */
	readonly isOriginal?: boolean;
}

export type Verdict =
	/** Leave the rest of our rules in this table out. */
	| {readonly kind: 'return'}
	| {readonly kind: 'accept'}
	| {readonly kind: 'drop'}
	/** TCP: reset; otherwise: port unreachable. */
	| {readonly kind: 'reject'}
	| {readonly kind: 'redirect'; readonly port: number}
	| {readonly kind: 'tproxy'; readonly port: number; readonly mark: number}
	/** These three go on with the next rule. */
	| {readonly kind: 'mark'; readonly mark: number}
	| {readonly kind: 'save-mark'}
	| {readonly kind: 'restore-mark'}
	/** Forget the connection soon if it is refused, or never answered. nft only. */
	| {readonly kind: 'forget-soon'}
	/** Conntrack zone of the original direction only, so that replies are found without a zone. */
	| {readonly kind: 'zone'; readonly zone: number}
	| {readonly kind: 'goto'; readonly chain: Chain};

export interface Rule {
	readonly family: Family;
	readonly chain: Chain;
	/** What it is for, in dots: `outbound.excluded-port`. Rules for the same purpose share it. */
	readonly id: string;
	readonly match: Match;
	readonly verdict: Verdict;
	/** Why it is there, for people. */
	readonly reason: string;
}

/** What stands beside the rules: without it TPROXY and `::6` do not work. */
export interface HostState {
	/** Packets with this mark are delivered to this machine, whatever their destination. */
	readonly policyRouting: {readonly mark: number; readonly table: number} | undefined;
	/** Families with policy routing. */
	readonly families: readonly Family[];
	/** Whether `::6` must be an address of lo: Envoy and probes use it as source. */
	readonly hasPassThroughAddress: boolean;
}

/** All that is to be true of the host. Pure data: the same settings on the same host make the same plan. */
export interface Plan {
	/** `capture`: traffic goes to Envoy. `block`: what would be captured is refused instead. */
	readonly kind: 'capture' | 'block';
	readonly rules: readonly Rule[];
	readonly host: HostState;
	/** What a person should know of it. */
	readonly notes: readonly string[];
	/** Of rules and host state; kept with the live rules. */
	readonly digest: string;
}
