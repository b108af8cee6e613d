import type {CaptureConfig} from '../config/index.ts';
import {AgentError} from '../errors.ts';
import type {Match} from './rules.ts';

/** Bridges to containers and virtual machines, by name or by pattern (`br-*`). */
export interface Bridges {
	readonly names: readonly string[];
}

/** What was found by looking at this machine. */
export interface HostFacts {
	/** Of the names in the settings; a name that nobody has is not there. */
	readonly users: Readonly<Record<string, {readonly uid: number; readonly gid: number | undefined}>>;
	readonly groups: Readonly<Record<string, number>>;
	readonly interfaces: readonly HostInterface[];
	/** Of resolv.conf, both families. */
	readonly nameservers: readonly string[];
	/** Where sshd listens, as far as can be seen; 22 at least. */
	readonly sshPorts: readonly number[];
	/** There may be more of these, which this user cannot see. */
	readonly isSshHidden: boolean;
	/** `off`: no IPv6 in this kernel, or switched off. `no-nat`: it works, but cannot be redirected. */
	readonly ipv6: 'on' | 'off' | 'no-nat';
	/** Whether rules can say how long the kernel remembers a connection (nft with CONFIG_NF_CT_TIMEOUT). */
	readonly hasConntrackTimeouts: boolean;
	/** Control groups of the units in the settings, relative to the root of cgroup v2. */
	readonly cgroups: Readonly<Record<string, string>>;
}

export interface HostInterface {
	readonly name: string;
	readonly isBridge: boolean;
	/** The way to the rest of the world: then it is no bridge to guests, whatever its name. */
	readonly hasDefaultRoute: boolean;
}

/** Settings and facts, put together once for both families. */
export interface PlanContext {
	readonly bridges: Bridges;
	/** Agent and Envoy, each way to recognise their sockets. */
	readonly owners: readonly Match[];
	readonly neverCaptured: readonly {readonly port: number; readonly reason: string}[];
	/** Only these, if any. */
	readonly includedOwners: readonly Match[];
	readonly excludedOwners: readonly Match[];
	readonly nameservers: readonly string[];
}

/** Names that container and VM software gives its bridges. Also matched as patterns, for bridges made later. */
const bridgePatterns = [
	'docker0',
	'docker_gwbridge',
	'br-*',
	'virbr*',
	'cni0',
	'cni-podman*',
	'podman*',
	'lxdbr*',
	'lxcbr*',
	'incusbr*',
];

const matchesPattern = (pattern: string, name: string): boolean =>
	pattern.endsWith('*') ? name.startsWith(pattern.slice(0, -1)) : name === pattern;

export function findBridges(interfaces: readonly HostInterface[]): Bridges {
	const outward = interfaces.filter(({hasDefaultRoute}) => hasDefaultRoute).map(({name}) => name);
	const patterns = bridgePatterns.filter(pattern => !outward.some(name => matchesPattern(pattern, name)));
	const found = interfaces
		.filter(
			({name, isBridge, hasDefaultRoute}) =>
				isBridge && !hasDefaultRoute && !patterns.some(each => matchesPattern(each, name)),
		)
		.map(({name}) => name);
	return {names: [...patterns, ...found.toSorted()]};
}

/** @throws AgentError `capture.user_missing`, `capture.unit_missing` */
export function readContext(config: CaptureConfig, host: HostFacts): PlanContext {
	const uidOf = (name: string) => userOf(host, name).uid;
	const gidOf = (name: string) => groupOf(host, name);
	const uids = [...new Set(config.users.map(uidOf))];
	const gids = [
		...new Set([...config.users.flatMap(name => primaryGroup(host, config, name)), ...config.groups.map(gidOf)]),
	];
	return {
		bridges: findBridges(host.interfaces),
		owners: [...uids.map(uid => ({uid: {is: [uid]}})), ...gids.map(gid => ({gid: {is: [gid]}}))],
		neverCaptured: neverCaptured(config, host),
		includedOwners: [
			...(config.outboundUsers === '*' ? [] : config.outboundUsers.map(name => ({uid: {is: [uidOf(name)]}}))),
			...(config.outboundGroups === '*' ? [] : config.outboundGroups.map(name => ({gid: {is: [gidOf(name)]}}))),
			...config.units.map(unit => ({cgroup: cgroupOf(host, unit)})),
		],
		excludedOwners: [
			...config.outboundExcludeUsers.map(name => ({uid: {is: [uidOf(name)]}})),
			// As in Istio, a list of groups to capture makes the list of others empty.
			...(config.outboundGroups === '*' ? config.outboundExcludeGroups : []).map(name => ({gid: {is: [gidOf(name)]}})),
			...config.excludeUnits.map(unit => ({cgroup: cgroupOf(host, unit)})),
		],
		nameservers: host.nameservers,
	};
}

function neverCaptured({ownPorts}: CaptureConfig, {sshPorts}: HostFacts): PlanContext['neverCaptured'] {
	const reasons = new Map<number, string>();
	for (const port of sshPorts) reasons.set(port, 'SSH: nobody may be locked out');
	for (const {port, use} of ownPorts)
		if (port > 0 && !reasons.has(port)) reasons.set(port, `${use}, asked from outside`);
	return [...reasons].map(([port, reason]) => ({port, reason})).toSorted((a, b) => a.port - b.port);
}

/** A missing user would leave Envoy's own traffic captured, in a loop; no default number can stand in for it. */
function userOf({users}: HostFacts, name: string): {readonly uid: number; readonly gid: number | undefined} {
	const user = users[name];
	if (user) return user;
	throw new AgentError('capture.user_missing', `plan capture: there is no user "${name}" on this machine`, {
		hint: `create it (useradd --system ${name}), or name the user of Envoy with capture.users`,
	});
}

function primaryGroup(host: HostFacts, {groups}: CaptureConfig, name: string): readonly number[] {
	const {uid, gid} = userOf(host, name);
	if (gid !== undefined) return [gid];
	if (groups.length > 0) return [];
	throw new AgentError('capture.user_missing', `plan capture: user id ${uid} has no entry, so its group is not known`, {
		hint: 'name the group with capture.groups, or name the user instead of its number',
	});
}

function groupOf({groups}: HostFacts, name: string): number {
	const gid = groups[name];
	if (gid !== undefined) return gid;
	throw new AgentError('capture.user_missing', `plan capture: there is no group "${name}" on this machine`, {
		hint: 'create it, or mend the name in the settings',
	});
}

function cgroupOf({cgroups}: HostFacts, unit: string): string {
	const path = cgroups[unit];
	if (path !== undefined) return path;
	throw new AgentError('capture.unit_missing', `plan capture: "${unit}" has no control group on this machine now`, {
		hint: 'start the unit first, or name the control group by its path below /sys/fs/cgroup',
	});
}
