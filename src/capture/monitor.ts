import {type ChildProcess, spawn} from 'node:child_process';
import type {Clock} from '../lifecycle/clock.ts';
import {findProgram} from './programs.ts';

/** What tells of changes as they happen: of nftables, what iptables-nft does included, and of what stands beside it. */
const monitors: readonly (readonly [program: string, ...args: string[]])[] = [
	['nft', 'monitor'],
	['ip', 'monitor', 'address', 'rule'],
];

/** One that ends was too slow for what happened, or cannot work here. */
const againAfterMs = 5000;

export interface Monitor {
	/** Whether all of them run, so that nothing goes unheard. */
	isListening(): boolean;
	stop(): void;
}

/** Calls back whenever the kernel tells of a change, also after a gap in which it could not. */
export function startMonitor(onChange: () => void, clock: Clock, signal: AbortSignal): Monitor {
	const running = new Map<string, ChildProcess>();
	const listen = ([program, ...args]: (typeof monitors)[number]): void => {
		const path = findProgram(program);
		if (path === undefined || signal.aborted) return;
		// Killed with us: otherwise it would only notice at the next change, and crashes would pile them up.
		const setpriv = findProgram('setpriv');
		const [file = path, ...words] = [...(setpriv ? [setpriv, '--pdeathsig', 'KILL', '--'] : []), path, ...args];
		const child = spawn(file, words, {stdio: ['ignore', 'pipe', 'ignore'], env: {LC_ALL: 'C'}});
		running.set(program, child);
		child.stdout.on('data', onChange);
		child.on('error', () => {}); // told by its end
		child.on('close', () => {
			running.delete(program);
			clock.sleep(againAfterMs, signal).then(
				() => {
					listen([program, ...args]);
					onChange();
				},
				() => {}, // the end of all
			);
		});
	};
	for (const monitor of monitors) listen(monitor);
	return {
		isListening: () => running.size === monitors.length,
		stop: () => {
			for (const child of running.values()) child.kill('SIGKILL');
		},
	};
}
