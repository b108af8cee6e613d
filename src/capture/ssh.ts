import {closeSync, openSync, readdirSync, readFileSync, readlinkSync, readSync} from 'node:fs';
import {systemCode} from '../errors.ts';

/** How daemons of SSH name themselves. */
const daemons: ReadonlySet<string> = new Set(['sshd', 'dropbear']);

export interface SshPorts {
	/** 22 always, so that a daemon that is not there yet is not cut off. */
	readonly ports: readonly number[];
	/** This user may read neither the settings of the daemon nor its sockets: there may be other ports. */
	readonly isHidden: boolean;
}

/** Ports of `sshd_config` and of running daemons. Costs no program: those that tell would read all of /proc, too. */
export function findSshPorts(): SshPorts {
	const ports = new Set([22]);
	const configured = readConfiguredPorts();
	const running = readListeningPorts();
	for (const port of [...(configured ?? []), ...(running ?? [])]) if (port > 0 && port < 65_536) ports.add(port);
	return {ports: [...ports].toSorted((a, b) => a - b), isHidden: configured === undefined && running === undefined};
}

/** undefined: may not be read. */
function readConfiguredPorts(): readonly number[] | undefined {
	const folder = '/etc/ssh/sshd_config.d';
	try {
		const further = readIfThere(() => readdirSync(folder), []).filter(name => name.endsWith('.conf'));
		const files = ['/etc/ssh/sshd_config', ...further.map(name => `${folder}/${name}`)];
		return files.flatMap(file => parsePorts(readIfThere(() => readFileSync(file, 'utf8'), '')));
	} catch (error) {
		if (systemCode(error) === 'EACCES' || systemCode(error) === 'EPERM') return undefined;
		throw error;
	}
}

/** Of `Port 2222` and `ListenAddress 10.0.0.1:2222`. */
export function parsePorts(text: string): readonly number[] {
	return text.split('\n').flatMap(line => {
		const [, port] =
			/^\s*Port[\s=]+(\d+)/i.exec(line) ?? /^\s*ListenAddress[\s=]+(?:\[[^\]]*\]|[^\s:]+):(\d+)/i.exec(line) ?? [];
		return port === undefined ? [] : [Number(port)];
	});
}

/** undefined: there is a daemon whose sockets may not be seen. */
function readListeningPorts(): readonly number[] | undefined {
	const inodes = new Set<string>();
	let isHidden = false;
	for (const pid of readdirSync('/proc')) {
		if (!/^\d/.test(pid)) continue;
		try {
			if (!daemons.has(readName(pid))) continue;
			for (const fd of readdirSync(`/proc/${pid}/fd`)) {
				const [, inode] = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`)) ?? [];
				if (inode !== undefined) inodes.add(inode);
			}
		} catch (error) {
			// Ended meanwhile, or not for us to see.
			if (systemCode(error) === 'EACCES' || systemCode(error) === 'EPERM') isHidden = true;
		}
	}
	if (inodes.size === 0) return isHidden ? undefined : [];
	return ['tcp', 'tcp6'].flatMap(name =>
		readIfThere(() => readFileSync(`/proc/self/net/${name}`, 'latin1'), '')
			.split('\n')
			.flatMap(line => {
				const [, local = '', , state, , , , , , inode = ''] = line.trim().split(/\s+/);
				return state === '0A' && inodes.has(inode) ? [Number.parseInt(local.split(':')[1]!, 16)] : [];
			}),
	);
}

/** The kernel cuts it off after 15 bytes. */
const nameBuffer = Buffer.alloc(16);

/** Hundreds of processes are asked at each look; `readFileSync` takes three times as long. */
function readName(pid: string): string {
	const fd = openSync(`/proc/${pid}/comm`, 'r');
	try {
		return nameBuffer.toString('latin1', 0, readSync(fd, nameBuffer)).trim();
	} finally {
		closeSync(fd);
	}
}

function readIfThere<T>(read: () => T, otherwise: T): T {
	try {
		return read();
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return otherwise;
		throw error;
	}
}
