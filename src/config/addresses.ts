import type {NetworkInterfaceInfo} from 'node:os';
import type {HostNetwork} from './host-network.ts';
import type {AddressRule} from './types.ts';
import {parseCidr} from './values.ts';

/** As os.networkInterfaces() gives it. */
export type Interfaces = Readonly<Record<string, readonly NetworkInterfaceInfo[] | undefined>>;

/** An address of this machine, and what speaks for or against it. */
export interface Candidate {
	readonly address: string;
	readonly interface: string;
	/** False: taken only if there is no other. */
	readonly isUsable: boolean;
	readonly why: string;
}

export interface AddressChoice {
	/** In the order in which they are tried. */
	readonly rules: readonly AddressRule[];
	/** Addresses of the control plane, as far as they are known without asking anybody. */
	readonly towards: readonly string[];
}

/** Bridges and container links: no peer outside this machine can reach us by them. */
const bridge = /^(?:docker|br-|virbr|cni|veth|podman|lxcbr|lxdbr|cali|flannel|vnet)/;
/** Reachable by an overlay's members only. */
const tunnel = /^(?:tun|tap|wg|tailscale)/;

/** Addresses for documentation are everywhere behind the default route. */
const anywhere = ['192.0.2.1', '2001:db8::1'];

/** linux/if_addr.h */
const flags = {temporary: 0x01, failed: 0x08, deprecated: 0x20, tentative: 0x40} as const;

/**
 * The addresses of this machine, best first: as the rules say, else IPv4 before IPv6, tunnels last, by names and numbers and never by the
 * order in which the kernel brought interfaces up. Those that are no good to others come at the end.
 */
export function rankAddresses(network: HostNetwork, choice: AddressChoice): readonly Candidate[] {
	const found = Object.entries(network.interfaces).flatMap(([name, infos]) =>
		(infos ?? []).filter(isReachable).map(info => judge(name, info.address, network)),
	);
	const usable = found.filter(({isUsable}) => isUsable);
	// Asking the kernel takes a moment, which most machines can be spared.
	const isClear = new Set(usable.map(({address}) => address)).size < 2;
	const reasons = new Map<string, readonly [rank: number, why: string]>();
	for (const [rank, rule] of (isClear ? [] : choice.rules).entries())
		for (const [address, why] of matches(rule, found, network, choice.towards))
			if (!reasons.has(address)) reasons.set(address, [rank, why]);
	const rankOf = ({address}: Candidate) => reasons.get(address)?.[0] ?? choice.rules.length;
	return found
		.toSorted(
			(left, right) =>
				Number(right.isUsable) - Number(left.isUsable) ||
				rankOf(left) - rankOf(right) ||
				Number(tunnel.test(left.interface)) - Number(tunnel.test(right.interface)) ||
				Number(left.address.includes(':')) - Number(right.address.includes(':')) ||
				compare(left.interface, right.interface) ||
				compare(left.address, right.address),
		)
		.map(candidate => ({...candidate, why: reasons.get(candidate.address)?.[1] ?? candidate.why}));
}

/**
 * The first names our WorkloadEntry; `127.0.0.1` when there is none.
 * @param explicit - goes first, wherever it comes from
 */
export function selectAddresses(
	ranked: readonly Candidate[],
	explicit: string | undefined,
): readonly [string, ...string[]] {
	const usable = ranked.filter(({isUsable}) => isUsable);
	const some = usable.length > 0 ? usable : ranked.slice(0, 1);
	const addresses = some.map(({address}) => address);
	const [first, ...rest] = new Set(explicit === undefined ? addresses : [explicit, ...addresses]);
	return [first ?? '127.0.0.1', ...rest];
}

function isReachable({address, internal}: NetworkInterfaceInfo): boolean {
	return !internal && !/^(?:127\.|169\.254\.|0\.0\.0\.0$|fe[89ab][0-9a-f]:|::1?$)/i.test(address);
}

function judge(name: string, address: string, {ipv6Flags}: HostNetwork): Candidate {
	const no = (why: string): Candidate => ({address, interface: name, isUsable: false, why});
	if (bridge.test(name)) return no('of a bridge or container link');
	const set = address.includes(':') ? (ipv6Flags?.().get(address) ?? 0) : 0;
	if (set & flags.deprecated) return no('deprecated');
	if (set & flags.temporary) return no('temporary');
	if (set & (flags.failed | flags.tentative)) return no('somebody else may have it');
	return {address, interface: name, isUsable: true, why: tunnel.test(name) ? 'of a tunnel' : 'of the machine'};
}

function matches(
	rule: AddressRule,
	found: readonly Candidate[],
	{sourceOf, cloudAddress}: HostNetwork,
	towards: readonly string[],
): (readonly [address: string, why: string])[] {
	const usable = found.filter(({isUsable}) => isUsable);
	switch (rule.kind) {
		case 'interface':
			return usable
				.filter(({interface: name}) =>
					rule.name.endsWith('*') ? name.startsWith(rule.name.slice(0, -1)) : name === rule.name,
				)
				.map(({address}) => [address, `of interface ${rule.name}`]);
		case 'cidr':
			return usable.filter(({address}) => isIn(address, rule.cidr)).map(({address}) => [address, `in ${rule.cidr}`]);
		case 'metadata': {
			const address = cloudAddress?.();
			return usable.filter(each => each.address === address).map(each => [each.address, 'as the cloud says']);
		}
		case 'route': {
			for (const destination of towards.length > 0 ? towards : anywhere) {
				const source = sourceOf?.(destination);
				const to = towards.length > 0 ? `the control plane (${destination})` : 'the default gateway';
				const own = found.find(({address}) => address === source);
				// The kernel prefers temporary addresses; a lasting one of the same interface is as near.
				const lasting = own && (own.isUsable ? own : usable.find(each => isBeside(each, own)));
				if (lasting) return [[lasting.address, `source of the route to ${to}`]];
			}
			return [];
		}
	}
}

const isBeside = (one: Candidate, other: Candidate): boolean =>
	one.interface === other.interface && one.address.includes(':') === other.address.includes(':');

function isIn(address: string, cidr: string): boolean {
	const [network = '', bits] = cidr.split('/');
	return network.includes(':') === address.includes(':') && parseCidr(`${address}/${bits}`) === cidr;
}

/** `eth2` before `eth10`: digits count as numbers. A collator would do the same, and takes 7 ms to load. */
function compare(left: string, right: string): number {
	const [lefts, rights] = [left.split(/(\d+)/), right.split(/(\d+)/)];
	for (const [i, part] of lefts.entries()) {
		const other = rights[i] ?? '';
		// Every second part is a number.
		if (i % 2 === 1 && other !== '' && Number(part) !== Number(other)) return Number(part) - Number(other);
		if (part !== other) return part < other ? -1 : 1;
	}
	return lefts.length - rights.length;
}
