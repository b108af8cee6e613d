import {type ChildProcess, spawn} from 'node:child_process';
import type {Clock} from './clock.ts';
import {findProgram} from './find-program.ts';

/** One that ends was too slow for what happened, or cannot work here. */
const againAfterMs = 5000;

/** Exit code of setpriv(1) itself. */
const setprivFailed = 127;

/** A program that prints something whenever the kernel tells of a change, as `ip monitor` does from netlink. */
export type MonitorCommand = readonly [program: string, ...args: string[]];

export interface Monitor {
	/** Whether all of them run, so that nothing goes unheard. */
	isListening(): boolean;
	stop(): void;
}

/** Calls back whenever the kernel tells of a change, also after a gap in which it could not. */
export function startMonitor(
	commands: readonly MonitorCommand[],
	onChange: () => void,
	clock: Clock,
	signal: AbortSignal,
): Monitor {
	const running = new Map<string, ChildProcess>();
	// Killed with us: otherwise one would only notice at the next change, and crashes would pile them up.
	let setpriv = findProgram('setpriv');
	const listen = ([program, ...args]: MonitorCommand): void => {
		const path = findProgram(program);
		if (path === undefined || signal.aborted) return;
		const tied = setpriv;
		const [file = path, ...words] = [...(tied ? [tied, '--pdeathsig', 'KILL', '--'] : []), path, ...args];
		const child = spawn(file, words, {stdio: ['ignore', 'pipe', 'ignore'], env: {LC_ALL: 'C'}});
		running.set(program, child);
		child.stdout.on('data', onChange);
		child.on('error', () => {}); // told by its end
		child.on('close', code => {
			running.delete(program);
			if (tied && code === setprivFailed) {
				// Some sandboxes do not let it set capabilities, not even those it has; they end with us all that is in them.
				setpriv = undefined;
				return listen([program, ...args]);
			}
			clock.sleep(againAfterMs, signal).then(
				() => {
					listen([program, ...args]);
					onChange();
				},
				() => {}, // the end of all
			);
		});
	};
	for (const command of commands) listen(command);
	return {
		isListening: () => running.size === commands.length,
		stop: () => {
			for (const child of running.values()) child.kill('SIGKILL');
		},
	};
}
