import type {HostFacts} from './context.ts';
import type {Kernel} from './kernel.ts';
import type {Plan, Redirect} from './rules.ts';

/** Our rules as they are in the kernel now. */
export interface LiveRules {
	/** Digest of the plan they were made from; undefined when they do not say, as after a change by hand. */
	readonly planDigest: string | undefined;
	readonly kind: Plan['kind'] | undefined;
	/** Number of rules by family and chain: `ip nat_output`. */
	readonly counts: Readonly<Record<string, number>>;
	/** What was done to our rules since they were loaded, in words, as far as counts do not tell. */
	readonly tampering: string | undefined;
	/** Rules of others that act before ours and can take packets from them. */
	readonly inFront: readonly string[];
	/** Something that only this backend can tell is missing (a jump to our chain, …). */
	readonly missing: readonly string[];
	readonly redirects: readonly Redirect[];
	/** Packets that each rule has seen, by chain and position. */
	readonly packets: readonly {
		readonly family: string;
		readonly chain: string;
		readonly comment: string;
		readonly packets: number;
	}[];
}

export type BackendName = 'nft' | 'iptables-nft' | 'iptables-legacy';

/** Facts that depend on the way: a kernel may know a thing that a tool cannot say. */
export type Abilities = Pick<HostFacts, 'hasConntrackTimeouts' | 'ipv6'>;

/** One way to put rules into the kernel. Each owns its own table or chains and touches nothing else. */
export interface Backend {
	readonly name: BackendName;
	/** @param ipv6 - whether this machine has it at all */
	abilities(ipv6: 'on' | 'off'): Promise<Abilities>;
	/** undefined = nothing of ours is there. */
	read(kernel: Kernel): Promise<LiveRules | undefined>;
	/** Whether the kernel would take the plan; changes nothing. @throws AgentError */
	check(plan: Plan, kernel: Kernel): Promise<void>;
	/**
	 * Replaces whatever of ours is there, without a moment in between.
	 * @throws AgentError `capture.unsupported` when the kernel does not take it, nothing having been changed
	 */
	load(plan: Plan, kernel: Kernel): Promise<void>;
	remove(kernel: Kernel): Promise<void>;
	/** The text that load would hand to the kernel. */
	render(plan: Plan, kernel: Kernel): Promise<string>;
}
