import {readdirSync, readFileSync} from 'node:fs';

/**
 * CPU that all threads of a process have used since it started, ms. From `schedstat` (ns) where the kernel keeps it:
 * `stat` counts in ticks of 10 ms, too coarse for a push of 100 services. Threads that have ended are in `stat` only;
 * so the larger of the two is right.
 */
export function readCpuMs(pid: number): number {
	let exactMs = 0;
	for (const thread of readdirSync(`/proc/${pid}/task`)) {
		try {
			exactMs += Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]) / 1e6;
		} catch {
			// The thread has just ended, or this kernel has no schedstat.
		}
	}
	const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
	// After the name in brackets, which may hold anything; utime and stime are fields 14 and 15 (proc_pid_stat(5)).
	const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
	const tickMs = 10;
	const ticksMs = (Number(fields[11]) + Number(fields[12])) * tickMs;
	return ticksMs > exactMs + 2 * tickMs ? ticksMs : exactMs;
}

const quietWindowMs = 500;
const quietWindows = 5;
const quietDeadlineMs = 20_000;

/** Waits until the process uses hardly any CPU: what it still does after a start belongs to the start. */
export async function untilIdle(pid: number): Promise<void> {
	const deadline = performance.now() + quietDeadlineMs;
	for (let quiet = 0; quiet < quietWindows && performance.now() < deadline; ) {
		const before = readCpuMs(pid);
		await sleep(quietWindowMs);
		quiet = readCpuMs(pid) - before < quietWindowMs * 0.02 ? quiet + 1 : 0;
	}
}

/** MiB, from smaps_rollup. */
export interface Memory {
	readonly rss: number;
	/** Pages of this process alone: what the machine would get back if it ended. */
	readonly private: number;
	/** Heaps and stacks, without pages of files. */
	readonly anonymous: number;
}

export const readMemory = (pid: number): Memory => parseMemory(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'));

export function parseMemory(text: string): Memory {
	const mib = (name: string): number =>
		Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1] ?? Number.NaN) / 1024;
	return {rss: mib('Rss'), private: mib('Private_Clean') + mib('Private_Dirty'), anonymous: mib('Anonymous')};
}

/** The smallest value that this share of all does not exceed. */
export function quantile(values: readonly number[], share: number): number {
	const sorted = [...values].sort((a, b) => a - b);
	return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
}

/** Of an even number of values, the middle between the two. */
export const median = (values: readonly number[]): number =>
	(quantile(values, 0.5) -
		quantile(
			values.map(value => -value),
			0.5,
		)) /
	2;

export const sleep = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms));
