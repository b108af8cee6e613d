import {isIP} from 'node:net';
import type {Chain, Family, Match, Plan, Rule, Test} from './rules.ts';

/** The first packet of a connection, or a question, as the rules see it. */
export interface Packet {
	readonly direction: 'in' | 'out';
	readonly protocol: 'tcp' | 'udp';
	/** Outbound: where to. Inbound: an address of this machine. */
	readonly destination: string;
	readonly port: number;
	readonly source?: string;
	/** Where it comes in or goes out. */
	readonly interface?: string;
	readonly uid?: number;
	readonly gid?: number;
}

/** What becomes of a packet, and the rule that decides; without one it goes on as it would without rules. */
export interface Decision {
	readonly fate: 'captured' | 'untouched' | 'refused';
	readonly rule: Rule | undefined;
}

/** Walks the rules as the kernel would. Pure; marks and connection tracking are taken as those of a new connection. */
export function evaluate(plan: Plan, packet: Packet): Decision {
	const family: Family = packet.destination.includes(':') ? 'ip6' : 'ip';
	const path: readonly Chain[] =
		packet.direction === 'out'
			? ['nat_output', 'filter_output']
			: ['mangle_prerouting', 'nat_prerouting', 'filter_input'];
	let decisive: Rule | undefined;
	for (const chain of path) {
		const rule = walk(plan, family, chain, packet);
		if (!rule) continue;
		if (rule.verdict.kind === 'redirect' || rule.verdict.kind === 'tproxy') return {fate: 'captured', rule};
		if (rule.verdict.kind === 'drop' || rule.verdict.kind === 'reject') return {fate: 'refused', rule};
		decisive ??= rule;
	}
	return {fate: 'untouched', rule: decisive};
}

function walk(plan: Plan, family: Family, chain: Chain, packet: Packet): Rule | undefined {
	for (const rule of plan.rules) {
		if (rule.family !== family || rule.chain !== chain || !matches(rule.match, packet)) continue;
		const {verdict} = rule;
		if (verdict.kind === 'goto') return walk(plan, family, verdict.chain, packet);
		if (!goesOn.has(verdict.kind)) return rule;
	}
	return undefined;
}

const goesOn: ReadonlySet<string> = new Set(['mark', 'save-mark', 'restore-mark', 'zone', 'forget-soon']);

function matches(match: Match, packet: Packet): boolean {
	const isOut = packet.direction === 'out';
	if (match.protocol !== undefined && match.protocol !== packet.protocol) return false;
	if (match.inInterface !== undefined && (isOut || !isInterface(match.inInterface, packet.interface))) return false;
	if (match.outInterface !== undefined && (!isOut || !isInterface(match.outInterface, packet.interface))) return false;
	if (match.source && !test(match.source, cidr => packet.source !== undefined && isWithin(packet.source, cidr)))
		return false;
	if (match.destination && !test(match.destination, cidr => isWithin(packet.destination, cidr))) return false;
	if (match.destinationPort && !test(match.destinationPort, ports => ports.includes(packet.port))) return false;
	if (match.uid && !test(match.uid, ids => packet.uid !== undefined && ids.includes(packet.uid))) return false;
	if (match.gid && !test(match.gid, ids => packet.gid !== undefined && ids.includes(packet.gid))) return false;
	if (match.isDestinationLocal !== undefined && match.isDestinationLocal === isOut) return false;
	if (match.isSyn !== undefined && (packet.protocol !== 'tcp' || !match.isSyn)) return false;
	// What the kernel knows and we do not: no unit, no mark, a new connection that nothing has rewritten yet.
	if (match.mark && !test(match.mark, mark => mark === 0)) return false;
	if (match.state && !match.state.includes('new')) return false;
	return match.cgroup === undefined && match.connectionMark === undefined && !match.isRewritten && !match.isNoReset;
}

const test = <T>(wanted: Test<T>, holds: (value: T) => boolean): boolean =>
	'is' in wanted ? holds(wanted.is) : !holds(wanted.not);

const isInterface = (pattern: string, name = ''): boolean =>
	pattern.endsWith('*') ? name.startsWith(pattern.slice(0, -1)) : pattern === name;

export function isWithin(address: string, cidr: string): boolean {
	const [network = '', digits] = cidr.split('/');
	if (isIP(address) !== isIP(network)) return false;
	const bits = isIP(network) === 4 ? 32 : 128;
	const shift = BigInt(bits - Number(digits ?? bits));
	return toNumber(address) >> shift === toNumber(network) >> shift;
}

function toNumber(address: string): bigint {
	if (isIP(address) === 4) return address.split('.').reduce((sum, part) => (sum << 8n) | BigInt(part), 0n);
	// The URL parser writes an embedded IPv4 address in hexadecimal.
	const [head = '', tail] = new URL(`http://[${address}]`).hostname.slice(1, -1).split('::');
	const groups = (part: string): string[] => (part === '' ? [] : part.split(':'));
	const [left, right] = [groups(head), groups(tail ?? '')];
	const all = [...left, ...Array.from({length: 8 - left.length - right.length}, () => '0'), ...right];
	return all.reduce((sum, group) => (sum << 16n) | BigInt(`0x${group}`), 0n);
}
