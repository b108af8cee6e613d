import {readFile} from 'node:fs/promises';
import {networkInterfaces} from 'node:os';
import type {CaptureConfig} from '../config/index.ts';
import {reasonOf, systemCode} from '../errors.ts';
import type {HostFacts, HostInterface} from './context.ts';
import {findProgram, type Run} from './programs.ts';

/** Looks at this machine as far as the settings make it matter. Changes nothing. */
export async function lookAtHost(
	config: CaptureConfig,
	run: Run,
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
	const [users, groups, interfaces, resolvConf, sshPorts, isIpv6, cgroups] = await Promise.all([
		findUsers(userNames, run),
		findGroups(groupNames, run),
		findInterfaces(run),
		readOptional('/etc/resolv.conf'),
		findSshPorts(run),
		hasIpv6(run),
		findCgroups([...config.units, ...config.excludeUnits], run),
	]);
	return {
		users,
		groups,
		interfaces,
		nameservers: parseNameservers(resolvConf),
		sshPorts,
		ipv6: isIpv6 ? 'on' : 'off',
		cgroups,
	};
}

async function findUsers(names: readonly string[], run: Run): Promise<HostFacts['users']> {
	const users: Record<string, {uid: number; gid: number | undefined}> = {};
	for (const name of new Set(names)) {
		const [, , uid, gid] = (await findEntry('passwd', name, run)) ?? [];
		if (uid !== undefined) users[name] = {uid: Number(uid), gid: Number(gid)};
		else if (/^\d+$/.test(name)) users[name] = {uid: Number(name), gid: undefined};
	}
	return users;
}

async function findGroups(names: readonly string[], run: Run): Promise<HostFacts['groups']> {
	const groups: Record<string, number> = {};
	for (const name of new Set(names)) {
		const gid = /^\d+$/.test(name) ? name : (await findEntry('group', name, run))?.[2];
		if (gid !== undefined) groups[name] = Number(gid);
	}
	return groups;
}

/** By name or number, first in the file, then where the system looks (LDAP and its like). */
async function findEntry(database: 'passwd' | 'group', name: string, run: Run): Promise<readonly string[] | undefined> {
	const lines = (await readOptional(`/etc/${database}`)).split('\n').map(line => line.split(':'));
	const entry = lines.find(fields => fields[0] === name || (/^\d+$/.test(name) && fields[2] === name));
	if (entry) return entry;
	if ((await findProgram('getent')) === undefined) return undefined;
	const {code, stdout} = await run('getent', [database, name]);
	return code === 0 && stdout.trim() !== '' ? stdout.trim().split('\n')[0]!.split(':') : undefined;
}

interface Link {
	readonly ifname?: string;
	readonly linkinfo?: {readonly info_kind?: string};
}

async function findInterfaces(run: Run): Promise<readonly HostInterface[]> {
	if ((await findProgram('ip')) === undefined)
		return Object.keys(networkInterfaces()).map(name => ({name, isBridge: false, hasDefaultRoute: false}));
	const [shown, ...routes] = await Promise.all([
		run('ip', ['-d', '-j', 'link', 'show']),
		run('ip', ['-4', '-j', 'route', 'show', 'default']),
		run('ip', ['-6', '-j', 'route', 'show', 'default']),
	]);
	const links = parseJson<Link>(shown.stdout);
	const outward = new Set(routes.flatMap(({stdout}) => parseJson<{dev?: string}>(stdout).map(({dev}) => dev)));
	return links.flatMap(({ifname, linkinfo}) =>
		ifname === undefined
			? []
			: [{name: ifname, isBridge: linkinfo?.info_kind === 'bridge', hasDefaultRoute: outward.has(ifname)}],
	);
}

/** `ip -j` prints nothing, or a list with empty objects, where there is nothing to show. */
function parseJson<T>(text: string): readonly T[] {
	return text.trim() === '' ? [] : (JSON.parse(text) as readonly T[]);
}

/** Addresses of `nameserver` lines, without zones, each once. */
export function parseNameservers(text: string): readonly string[] {
	const found = text.split('\n').map(line => /^\s*nameserver\s+([0-9a-fA-F.:]+)/.exec(line)?.[1]?.toLowerCase());
	return [...new Set(found.filter(address => address !== undefined))];
}

/** Ports of `sshd_config` and of running sshd; 22 always, so that a daemon that is not there yet is not cut off. */
async function findSshPorts(run: Run): Promise<readonly number[]> {
	const ports = new Set([22]);
	for (const line of (await readOptional('/etc/ssh/sshd_config')).split('\n')) {
		const [, port] = /^\s*Port\s+(\d+)/i.exec(line) ?? [];
		if (port !== undefined) ports.add(Number(port));
	}
	if ((await findProgram('ss')) !== undefined) {
		const {stdout} = await run('ss', ['-H', '-l', '-t', '-n', '-p']);
		for (const line of stdout.split('\n')) {
			const [, port] = /:(\d+)\s+\S+\s+users:\(\("sshd"/.exec(line) ?? [];
			if (port !== undefined) ports.add(Number(port));
		}
	}
	return [...ports].filter(port => port > 0 && port < 65_536).toSorted((a, b) => a - b);
}

/** Without IPv6, or with it switched off, not even lo has an address. */
async function hasIpv6(run: Run): Promise<boolean> {
	if ((await findProgram('ip')) === undefined)
		return Object.values(networkInterfaces()).some(list => list?.some(({family}) => family === 'IPv6'));
	const devices = parseJson<{addr_info?: readonly unknown[]}>((await run('ip', ['-6', '-j', 'addr', 'show'])).stdout);
	return devices.some(({addr_info: addresses = []}) => addresses.length > 0);
}

/** A path stands for itself; a unit is asked of systemd. */
async function findCgroups(units: readonly string[], run: Run): Promise<HostFacts['cgroups']> {
	const found: Record<string, string> = {};
	for (const unit of new Set(units)) {
		if (unit.includes('/') || unit.endsWith('.slice')) {
			found[unit] = unit;
			continue;
		}
		if ((await findProgram('systemctl')) === undefined) continue;
		const {code, stdout} = await run('systemctl', ['show', '--property=ControlGroup', '--value', '--', unit]);
		const path = stdout.trim().replace(/^\/+/, '');
		if (code === 0 && path !== '') found[unit] = path;
	}
	return found;
}

async function readOptional(path: string): Promise<string> {
	try {
		return await readFile(path, 'utf8');
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return '';
		throw new Error(`read ${path}: ${reasonOf(error)}`, {cause: error});
	}
}
