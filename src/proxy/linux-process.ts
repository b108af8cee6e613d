/** Processes as /proc shows them. A process is known by pid *and* start time, as pids are used again. Source: proc(5). */
import {readdirSync, readFileSync, readlinkSync} from 'node:fs';
import {systemCode} from '../errors.ts';

export interface ProcessIdentity {
	readonly pid: number;
	/** Clock ticks since boot (field 22 of /proc/PID/stat). */
	readonly startTime: number;
	/** What runs; ends in ` (deleted)` when the file was replaced since. */
	readonly exe: string;
	readonly argv: readonly string[];
}

/** Start time of a process, or undefined when it is gone or a zombie. */
export function startTimeOf(pid: number): number | undefined {
	let text: string;
	try {
		text = readFileSync(`/proc/${pid}/stat`, 'utf8');
	} catch (error) {
		const code = systemCode(error);
		if (code === 'ENOENT' || code === 'ESRCH') return undefined;
		throw error;
	}
	// The name (field 2) may hold blanks and brackets, so count from behind its last bracket; what follows is field 3.
	const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
	return fields[0] === 'Z' || fields[0] === 'X' ? undefined : Number(fields[19]);
}

/** Undefined when it is gone, or is not ours to look at. */
export function identify(pid: number): ProcessIdentity | undefined {
	try {
		const startTime = startTimeOf(pid);
		if (startTime === undefined) return undefined;
		return {pid, startTime, exe: readlinkSync(`/proc/${pid}/exe`), argv: readArgv(pid)};
	} catch {
		// EACCES: another user's process, which we neither adopt nor end.
		return undefined;
	}
}

/** Processes of ours whose command line ends with these arguments. */
export function findByArguments(args: readonly string[]): ProcessIdentity[] {
	const wanted = args.join('\0');
	return readdirSync('/proc')
		.filter(name => /^\d+$/.test(name))
		.flatMap(name => {
			try {
				if (!readArgv(Number(name)).join('\0').endsWith(`\0${wanted}`)) return [];
			} catch {
				return []; // Gone since, or not ours.
			}
			return identify(Number(name)) ?? [];
		});
}

/** Changes with every boot; pids and start times mean nothing across it. */
export function bootId(): string {
	return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

function readArgv(pid: number): string[] {
	return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1);
}
