import {readdirSync, readFileSync} from 'node:fs';
import type {Clock} from '../lifecycle/clock.ts';

/** In the environment of the programs that we run: whose they are, see `processMark`. */
export const startedBy = 'ONRAMP_STARTED_BY';

const lookEveryMs = 5;
/** One that the kernel does not let go is not waited for. */
const mostMs = 2000;

/**
 * Ends the programs of a change that was killed: each changes the rules in one step, but after the next change has looked
 * at them, and would be done twice.
 * @param mark - of the process that was killed
 */
export async function endOrphans(mark: string, clock: Clock): Promise<void> {
	const deadlineMs = clock.monotonicMs() + mostMs;
	const entry = `${startedBy}=${mark}`;
	for (let left = withEntry(entry); left.length > 0 && clock.monotonicMs() < deadlineMs; left = withEntry(entry)) {
		for (const pid of left) kill(pid);
		await clock.sleep(lookEveryMs);
	}
}

/** Those that have ended have no environment any more. */
function withEntry(entry: string): readonly number[] {
	return readdirSync('/proc')
		.filter(name => /^\d+$/.test(name))
		.filter(name => environmentOf(name).includes(entry))
		.map(Number);
}

function environmentOf(pid: string): readonly string[] {
	try {
		return readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0');
	} catch {
		return []; // Gone, or another user's.
	}
}

function kill(pid: number): void {
	try {
		process.kill(pid, 'SIGKILL');
	} catch {
		// Gone meanwhile.
	}
}
