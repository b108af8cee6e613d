import {readFile} from 'node:fs/promises';
import {systemCode} from '../errors.ts';
import {evaluate, type Packet} from './evaluate.ts';
import type {Family, Plan, Redirect} from './rules.ts';

/** Connections of one kind that go past Envoy though the rules would capture them: they are older than the rules. */
export interface OlderConnections {
	readonly direction: 'in' | 'out';
	/** Outbound: where to. Inbound: the port here and who has connected. */
	readonly what: string;
	readonly uid: number;
	readonly count: number;
}

interface Socket {
	readonly local: string;
	readonly localPort: number;
	readonly remote: string;
	readonly remotePort: number;
	readonly uid: number;
}

const established = '01';
const listening = '0A';

/**
 * Those of this moment, as the table of sockets tells, which costs no program and no right. A connection that was
 * redirected has its other half at Envoy, with the same far end.
 */
export function findOlder(
	plan: Plan,
	proxyPorts: readonly number[],
	tables: readonly string[],
): readonly OlderConnections[] {
	if (plan.kind === 'block') return [];
	const sockets = tables.flatMap(parseSockets);
	const own = new Set(sockets.filter(({state}) => state === listening).map(({localPort}) => localPort));
	const open = sockets.filter(({state}) => state === established);
	const exempt = new Set(
		plan.rules.flatMap(({id, match: {uid}}) => (id === 'outbound.own' && uid && 'is' in uid ? uid.is : [])),
	);
	// With TPROXY Envoy has the other halves under the addresses of both ends.
	const atProxy = new Set(
		open
			.filter(({localPort, uid}) => proxyPorts.includes(localPort) || exempt.has(uid))
			.flatMap(each => [
				`${each.remote} ${each.remotePort}`,
				...(exempt.has(each.uid) ? [`${each.local} ${each.localPort}`] : []),
			]),
	);
	const found = new Map<string, OlderConnections>();
	for (const socket of open) {
		const isIn = own.has(socket.localPort);
		const {local, remote, remotePort, localPort, uid} = socket;
		// What stays on this machine is told by its other half, or not captured at all.
		if (isLoopback(remote) || local === remote || exempt.has(uid)) continue;
		const packet: Packet = isIn
			? {direction: 'in', protocol: 'tcp', destination: local, port: localPort, source: remote}
			: {direction: 'out', protocol: 'tcp', destination: remote, port: remotePort, source: local, uid};
		const twin = isIn ? `${remote} ${remotePort}` : `${local} ${localPort}`;
		if (atProxy.has(twin) || evaluate(plan, packet).fate !== 'captured') continue;
		const [direction, what] = isIn
			? (['in', `port ${localPort} from ${remote}`] as const)
			: (['out', `to ${remote.includes(':') ? `[${remote}]` : remote}:${remotePort}`] as const);
		const key = `${direction} ${what} ${uid}`;
		found.set(key, {direction, what, uid, count: (found.get(key)?.count ?? 0) + 1});
	}
	return [...found.values()].toSorted((a, b) => b.count - a.count);
}

/** So many are named; of the others only the number is told. */
const mostNamed = 10;

/** One sentence each; empty when there are none. */
export function describeOlder(older: readonly OlderConnections[], what: 'leave' | 'end'): readonly string[] {
	const fate = (direction: 'in' | 'out') =>
		what === 'end' && direction === 'out' ? 'ended when it next speaks' : 'past Envoy until it ends';
	const named = older.slice(0, mostNamed).map(({direction, what: which, uid, count}) => {
		const way = direction === 'in' ? 'inbound' : 'outbound';
		return `older than the rules, ${fate(direction)}: ${way}, ${which}, uid ${uid}${count > 1 ? `, ${count} connections` : ''}`;
	});
	const rest = older.slice(mostNamed).reduce((sum, {count}) => sum + count, 0);
	return rest > 0 ? [...named, `older than the rules: ${rest} connections more`] : named;
}

/** Established connections at ports of this machine. */
export function countConnections(at: readonly Redirect[], tables: readonly string[]): number {
	const wanted = new Set(at.map(({family, port}) => `${family} ${port}`));
	return tables.flatMap(parseSockets).filter(({state, local, localPort}) => {
		const family: Family = local.includes(':') ? 'ip6' : 'ip';
		return state === established && wanted.has(`${family} ${localPort}`);
	}).length;
}

/** The table of TCP sockets, of both families. */
export const readSockets = (): Promise<readonly string[]> =>
	Promise.all(
		['tcp', 'tcp6'].map(async name => {
			try {
				return await readFile(`/proc/self/net/${name}`, 'latin1');
			} catch (error) {
				if (systemCode(error) === 'ENOENT') return '';
				throw error;
			}
		}),
	);

function parseSockets(text: string): readonly (Socket & {readonly state: string})[] {
	return text
		.split('\n')
		.slice(1)
		.flatMap(line => {
			const [, local, remote, state, , , , uid] = line.trim().split(/\s+/);
			if (local === undefined || remote === undefined || (state !== established && state !== listening)) return [];
			const [here, there] = [parseEndpoint(local), parseEndpoint(remote)];
			return [
				{local: here[0], localPort: here[1], remote: there[0], remotePort: there[1], uid: Number(uid), state: state!},
			];
		});
}

/** `0100007F:1F90`: each 32 bits of the address in the order of this machine. */
export function parseEndpoint(text: string): readonly [address: string, port: number] {
	const [hex = '', port = ''] = text.split(':');
	const bytes = Buffer.from(hex, 'hex').swap32();
	const isMapped = bytes.length === 16 && bytes.readUInt32BE(8) === 0xffff && bytes.readBigUInt64BE(0) === 0n;
	const address =
		bytes.length === 4 || isMapped
			? [...bytes.subarray(-4)].join('.')
			: new URL(
					`http://[${Array.from({length: 8}, (_, i) => bytes.readUInt16BE(i * 2).toString(16)).join(':')}]`,
				).hostname.slice(1, -1);
	return [address, Number.parseInt(port, 16)];
}

const isLoopback = (address: string): boolean => address.startsWith('127.') || address === '::1';
