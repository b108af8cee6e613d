import {readdir} from 'node:fs/promises';
import type {Clock} from '../lifecycle/index.ts';

/** How often the loop's lag is looked at; one timer a second costs nothing to speak of. */
const lagCheckMs = 1000;
/** The worst lag of the last minute is what is told, so that a scrape each 15 s misses none. */
const lagSamples = 60;

export interface ProcessMetrics {
	render(): Promise<string>;
	stop(): void;
}

/**
 * The agent as a process. Named `onramp_process_*`: the application's page comes behind ours and has its own
 * `process_*`, and the same series twice would be refused.
 */
export function startProcessMetrics({
	clock,
	version,
}: {
	readonly clock: Clock;
	readonly version: string;
}): ProcessMetrics {
	const lagsMs: number[] = [];
	let dueMs = clock.monotonicMs() + lagCheckMs;
	const timer = setInterval(() => {
		const nowMs = clock.monotonicMs();
		lagsMs.push(Math.max(0, nowMs - dueMs));
		if (lagsMs.length > lagSamples) lagsMs.shift();
		dueMs = nowMs + lagCheckMs;
	}, lagCheckMs);
	timer.unref();
	return {
		stop: () => clearInterval(timer),
		render: async () => {
			const {user, system} = process.cpuUsage();
			const rows: [name: string, type: string, help: string, value: number | undefined][] = [
				['process_resident_memory_bytes', 'gauge', 'Resident memory.', process.memoryUsage.rss()],
				['process_cpu_seconds_total', 'counter', 'User and system CPU time.', (user + system) / 1e6],
				['process_open_fds', 'gauge', 'Open file descriptors.', await countFiles()],
				['process_uptime_seconds', 'gauge', 'Time since the start.', process.uptime()],
				[
					'event_loop_lag_seconds',
					'gauge',
					'Worst lag of the event loop in the last minute.',
					Math.max(0, ...lagsMs) / 1000,
				],
				[`build_info{version="${version}",node="${process.version}"}`, 'gauge', 'Always 1.', 1],
			];
			return rows.map(renderRow).join('');
		},
	};
}

function renderRow([series, type, help, value]: [string, string, string, number | undefined]): string {
	if (value === undefined) return '';
	const name = `onramp_${series.split('{')[0]}`;
	return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\nonramp_${series} ${value}\n`;
}

/** Undefined where /proc is not mounted. */
async function countFiles(): Promise<number | undefined> {
	return readdir('/proc/self/fd').then(
		names => names.length,
		() => undefined,
	);
}
