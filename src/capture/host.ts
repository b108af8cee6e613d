import {readFileSync} from 'node:fs';
import {networkInterfaces} from 'node:os';
import type {CaptureConfig} from '../config/index.ts';
import {reasonOf, systemCode} from '../errors.ts';
import {findProgram} from '../lifecycle/find-program.ts';
import type {HostFacts, HostInterface} from './context.ts';
import type {Kernel} from './kernel.ts';
import type {Run} from './programs.ts';
import {findSshPorts} from './ssh.ts';

/** Looks at this machine as far as the settings make it matter. Changes nothing. */
export async function lookAtHost(
	config: CaptureConfig,
	run: Run,
	kernel: Kernel,
): Promise<Omit<HostFacts, 'hasConntrackTimeouts' | 'ipv6'> & {readonly ipv6: 'on' | 'off'}> {
	const userNames = [
		...config.users,
		...(config.outboundUsers === '*' ? [] : config.outboundUsers),
		...config.outboundExcludeUsers,
	];
	const groupNames = [
		...config.groups,
		...(config.outboundGroups === '*' ? [] : config.outboundGroups),
		...config.outboundExcludeGroups,
	];
	const [users, groups, interfaces, resolvConf, ssh, isIpv6, cgroups] = await Promise.all([
		findUsers(userNames, config.groups.length > 0, run),
		findGroups(groupNames, run),
		findInterfaces(kernel),
		readOptional('/etc/resolv.conf'),
		findSshPorts(),
		hasIpv6(kernel),
		findCgroups([...config.units, ...config.excludeUnits], run),
	]);
	return {
		users,
		groups,
		interfaces,
		nameservers: parseNameservers(resolvConf),
		sshPorts: ssh.ports,
		isSshHidden: ssh.isHidden,
		ipv6: isIpv6 ? 'on' : 'off',
		cgroups,
	};
}

/** @param hasGroups - the settings name groups, so that of a user who is only a number nothing needs to be found out */
async function findUsers(names: readonly string[], hasGroups: boolean, run: Run): Promise<HostFacts['users']> {
	const users: Record<string, {uid: number; gid: number | undefined}> = {};
	for (const name of new Set(names)) {
		const [, , uid, gid] = (await findEntry('passwd', name, hasGroups && isNumber(name) ? undefined : run)) ?? [];
		if (uid !== undefined) users[name] = {uid: Number(uid), gid: Number(gid)};
		else if (isNumber(name)) users[name] = {uid: Number(name), gid: undefined};
	}
	return users;
}

async function findGroups(names: readonly string[], run: Run): Promise<HostFacts['groups']> {
	const groups: Record<string, number> = {};
	for (const name of new Set(names)) {
		const gid = isNumber(name) ? name : (await findEntry('group', name, run))?.[2];
		if (gid !== undefined) groups[name] = Number(gid);
	}
	return groups;
}

const isNumber = (name: string): boolean => /^\d+$/.test(name);

/** By name or number, first in the file, then where the system looks (LDAP and its like). */
async function findEntry(
	database: 'passwd' | 'group',
	name: string,
	run: Run | undefined,
): Promise<readonly string[] | undefined> {
	const lines = readOptional(`/etc/${database}`)
		.split('\n')
		.map(line => line.split(':'));
	const entry = lines.find(fields => fields[0] === name || (isNumber(name) && fields[2] === name));
	if (entry) return entry;
	if (!run || findProgram('getent') === undefined) return undefined;
	const {code, stdout} = await run('getent', [database, name]);
	return code === 0 && stdout.trim() !== '' ? stdout.trim().split('\n')[0]!.split(':') : undefined;
}

async function findInterfaces(kernel: Kernel): Promise<readonly HostInterface[]> {
	const [four, six] = await Promise.all([kernel.ip('ip'), kernel.ip('ip6')]);
	if (!four || !six)
		return Object.keys(networkInterfaces()).map(name => ({name, isBridge: false, hasDefaultRoute: false}));
	const outward = new Set(
		[...four, ...six].flatMap(entry => (entry['dst'] === 'default' && !('table' in entry) ? [entry['dev']] : [])),
	);
	return four.flatMap(({ifname, linkinfo}) =>
		typeof ifname === 'string'
			? [
					{
						name: ifname,
						isBridge: (linkinfo as {info_kind?: string} | undefined)?.info_kind === 'bridge',
						hasDefaultRoute: outward.has(ifname),
					},
				]
			: [],
	);
}

/** Addresses of `nameserver` lines, without zones, each once. */
export function parseNameservers(text: string): readonly string[] {
	const found = text.split('\n').map(line => /^\s*nameserver\s+([0-9a-fA-F.:]+)/.exec(line)?.[1]?.toLowerCase());
	return [...new Set(found.filter(address => address !== undefined))];
}

/** Without IPv6, or with it switched off, not even lo has an address. */
async function hasIpv6(kernel: Kernel): Promise<boolean> {
	const entries = await kernel.ip('ip6');
	if (!entries) return Object.values(networkInterfaces()).some(list => list?.some(({family}) => family === 'IPv6'));
	return entries.some(({addr_info: addresses}) => ((addresses as readonly unknown[] | undefined) ?? []).length > 0);
}

/** A path stands for itself; a unit is asked of systemd. */
async function findCgroups(units: readonly string[], run: Run): Promise<HostFacts['cgroups']> {
	const found: Record<string, string> = {};
	for (const unit of new Set(units)) {
		if (unit.includes('/') || unit.endsWith('.slice')) {
			found[unit] = unit;
			continue;
		}
		if (findProgram('systemctl') === undefined) continue;
		const {code, stdout} = await run('systemctl', ['show', '--property=ControlGroup', '--value', '--', unit]);
		const path = stdout.trim().replace(/^\/+/, '');
		if (code === 0 && path !== '') found[unit] = path;
	}
	return found;
}

function readOptional(path: string): string {
	try {
		return readFileSync(path, 'utf8');
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return '';
		throw new Error(`read ${path}: ${reasonOf(error)}`, {cause: error});
	}
}
