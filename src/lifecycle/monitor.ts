import {type ChildProcess, spawn} from 'node:child_process';
import type {Clock} from './clock.ts';
import {findProgram} from './find-program.ts';

/** One that ends after a while was too slow for what happened; one that ends at once cannot work here, and is tried less and less. */
const againAfterMs = {first: 5000, most: 300_000};
const provedAfterMs = 10_000;

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
	const listen = ([program, ...args]: MonitorCommand, againInMs = againAfterMs.first): void => {
		const path = findProgram(program);
		if (path === undefined || signal.aborted) return;
		const tied = setpriv;
		const [file = path, ...words] = [...(tied ? [tied, '--pdeathsig', 'KILL', '--'] : []), path, ...args];
		const child = spawn(file, words, {stdio: ['ignore', 'pipe', 'ignore'], env: {LC_ALL: 'C'}});
		const startedMs = clock.monotonicMs();
		running.set(program, child);
		child.stdout.on('data', onChange);
		child.on('error', () => {}); // told by its end
		child.on('close', code => {
			running.delete(program);
			if (tied && code === setprivFailed) {
				// Some sandboxes do not let it set capabilities, not even those it has; they end with us all that is in them.
				setpriv = undefined;
				return listen([program, ...args], againInMs);
			}
			const hasWorked = clock.monotonicMs() - startedMs >= provedAfterMs;
			const waitMs = hasWorked ? againAfterMs.first : againInMs;
			clock.sleep(waitMs, signal).then(
				() => {
					listen([program, ...args], Math.min(waitMs * 2, againAfterMs.most));
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
