import {closeSync, openSync, readdirSync, readFileSync, readlinkSync, readSync} from 'node:fs';
import {AgentError, systemCode} from '../errors.ts';

/** A TCP socket that listens, as /proc/net/tcp and tcp6 show it. */
export interface ListeningSocket {
	/** As the kernel prints it: hex, words in host order; all zeros is the wildcard. */
	readonly address: string;
	readonly port: number;
	readonly inode: string;
}

/**
 * Throws when one of the ports is taken. Binding it for a try would say less: with SO_REUSEPORT, which Envoy sets,
 * a second Envoy of the same user binds without complaint and takes half of the connections.
 * @throws AgentError `proxy.port_in_use`
 */
export function checkPortsFree(listenAddress: string, ports: Readonly<Record<string, number>>): void {
	const sockets = listeningSockets();
	for (const [purpose, port] of Object.entries(ports)) {
		const taken = sockets.find(socket => socket.port === port && overlaps(socket.address, listenAddress));
		if (!taken) continue;
		const owner = findOwner(taken.inode);
		const who = owner ? `${owner.name} (pid ${owner.pid})` : 'another process';
		throw new AgentError('proxy.port_in_use', `start envoy: port ${port} for ${purpose} is taken by ${who}`, {
			hint: `stop it, or give envoy another port; to see who listens: ss -ltnp 'sport = :${port}'`,
			fields: {port, purpose, ...(owner ? {pid: owner.pid, process: owner.name} : {})},
		});
	}
}

/**
 * Lines of /proc/net/tcp: `sl local_address rem_address st … inode`; state 0A listens. The kernel lists those that
 * listen first, so the first other one is the end.
 * @param lines - without the heading
 */
export function parseListening(lines: readonly string[]): {sockets: ListeningSocket[]; isEnd: boolean} {
	const rows = lines.map(line => line.trim().split(/\s+/));
	const end = rows.findIndex(fields => fields[3] !== '0A');
	const sockets = rows.slice(0, end < 0 ? undefined : end).map(fields => {
		const [address = '', port = '0'] = fields[1]!.split(':');
		return {address, port: Number.parseInt(port, 16), inode: fields[9] ?? ''};
	});
	return {sockets, isEnd: end >= 0};
}

/** A few dozen lines; the kernel writes the rest only if it is asked for, and may have 100,000 connections to tell. */
const chunkBytes = 8192;

function listeningSockets(): ListeningSocket[] {
	return ['/proc/net/tcp', '/proc/net/tcp6'].flatMap(path => {
		try {
			return readListening(path);
		} catch (error) {
			if (systemCode(error) === 'ENOENT') return []; // No IPv6 in this kernel.
			throw error;
		}
	});
}

function readListening(path: string): ListeningSocket[] {
	const found: ListeningSocket[] = [];
	const chunk = Buffer.alloc(chunkBytes);
	const fd = openSync(path, 'r');
	try {
		let rest = '';
		let isHeading = true;
		for (;;) {
			const length = readSync(fd, chunk);
			const lines = (rest + chunk.toString('latin1', 0, length)).split('\n');
			rest = lines.pop()!;
			if (isHeading && lines.length > 0) {
				lines.shift();
				isHeading = false;
			}
			const {sockets, isEnd} = parseListening(lines);
			found.push(...sockets);
			if (isEnd || length === 0) return found;
		}
	} finally {
		closeSync(fd);
	}
}

const mapped = '0000000000000000FFFF0000';

/** Whether a bind to `wanted` meets a socket on `taken`: the same address, or a wildcard on either side. */
export function overlaps(taken: string, wanted: string): boolean {
	const isTakenV6 = taken.length === 32;
	if (/^0+$/.test(taken)) return true; // `::` mostly takes IPv4 along; where it does not, a false alarm is the lesser evil.
	if (wanted === '::') return true;
	if (wanted.includes(':')) return isTakenV6 && taken === hexOfV6(wanted);
	if (wanted === '0.0.0.0') return !isTakenV6 || taken.startsWith(mapped);
	const hex = hexOfV4(wanted);
	return taken === hex || taken === mapped + hex;
}

/** Little endian machines, which all supported ones are, print the bytes of each word in reverse. */
function hexOfV4(address: string): string {
	const bytes = address.split('.').map(Number).reverse();
	return Buffer.from(bytes).toString('hex').toUpperCase();
}

function hexOfV6(address: string): string {
	const [head = '', tail] = address.split('::');
	const front = head === '' ? [] : head.split(':');
	const back = tail === undefined || tail === '' ? [] : tail.split(':');
	const middle = tail === undefined ? [] : new Array<string>(8 - front.length - back.length).fill('0');
	const hex = [...front, ...middle, ...back].map(group => group.padStart(4, '0')).join('');
	return (hex.match(/.{8}/g) ?? [])
		.map(word => word.match(/../g)!.reverse().join(''))
		.join('')
		.toUpperCase();
}

/** The process that holds a socket, if we may look into it. */
function findOwner(inode: string): {pid: number; name: string} | undefined {
	for (const pid of readdirSync('/proc').filter(name => /^\d+$/.test(name))) {
		try {
			const holds = readdirSync(`/proc/${pid}/fd`).some(fd => {
				try {
					return readlinkSync(`/proc/${pid}/fd/${fd}`) === `socket:[${inode}]`;
				} catch {
					return false; // Closed since.
				}
			});
			if (holds) return {pid: Number(pid), name: readFileSync(`/proc/${pid}/comm`, 'utf8').trim()};
		} catch {
			// Gone since, or another user's.
		}
	}
	return undefined;
}
