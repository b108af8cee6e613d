import {readdir, readFile, readlink} from 'node:fs/promises';

/**
 * Who listens on a TCP port, as `name (pid 123)`. Undefined when it cannot be found out: another user's process,
 * or a sandbox that hides /proc/net. It only makes an error message better, so looking is all it does.
 */
export async function findPortOwner(port: number): Promise<string | undefined> {
	const inodes = new Set<string>();
	for (const table of ['/proc/net/tcp', '/proc/net/tcp6']) {
		for (const inode of parseListeners(await readOr(table), port)) inodes.add(`socket:[${inode}]`);
	}
	if (inodes.size === 0) return undefined;
	for (const pid of await listOr('/proc')) {
		if (/^\d+$/.test(pid) && (await holdsOneOf(pid, inodes)))
			return `${(await readOr(`/proc/${pid}/comm`)).trim()} (pid ${pid})`;
	}
	return undefined;
}

const listening = '0A';

/** Inodes of the sockets that listen on a port. Columns of /proc/net/tcp: slot, local, remote, state, …, inode is the tenth. */
export function parseListeners(table: string, port: number): string[] {
	const local = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
	const rows = table.split('\n').map(line => line.trim().split(/\s+/));
	return rows.filter(row => row[1]?.endsWith(local) && row[3] === listening).map(row => row[9] ?? '');
}

async function holdsOneOf(pid: string, sockets: ReadonlySet<string>): Promise<boolean> {
	for (const fd of await listOr(`/proc/${pid}/fd`)) {
		const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => '');
		if (sockets.has(target)) return true;
	}
	return false;
}

function readOr(path: string): Promise<string> {
	return readFile(path, 'utf8').catch(() => '');
}

function listOr(path: string): Promise<string[]> {
	return readdir(path).catch(() => []);
}
