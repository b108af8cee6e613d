// Loaded by the agent, too, so nothing here makes rules.
import {readFile, rm} from 'node:fs/promises';
import {systemCode} from '../errors.ts';
import {writeFileAtomic} from '../lifecycle/atomic-file.ts';

/**
 * How the last change of rules ended, for the agent, which has no right to look at them itself. Every user may read it.
 * - `in`: the rules are in the kernel
 * - `failed`: there are none, as they could not be put in, or were undone
 * - `drifted`: in, and changed by somebody else, which `capture.on-drift` leaves to people
 * - `removed`: somebody, or `capture.on-agent-down`, has taken them away
 */
export type Outcome = Result & {
	/** ISO 8601. */
	readonly at: string;
};

export type Result =
	| {readonly state: 'in'; readonly backend: string; readonly rules: number; readonly plan: string}
	| {readonly state: 'failed'; readonly reason: string; readonly hint: string | undefined}
	| {readonly state: 'drifted' | 'removed'; readonly reason: string};

export const outcomePath = (stateDir: string): string => `${stateDir}/outcome.json`;

/**
 * Not kept over a power cut, which no rules outlive either. Never fails, as the change itself has been made: where it cannot
 * be written, as on a full disk or in a directory of somebody else, what was said before is taken back.
 */
export async function writeOutcome(stateDir: string, result: Result): Promise<void> {
	const outcome = {...result, at: new Date().toISOString()};
	const path = outcomePath(stateDir);
	try {
		await writeFileAtomic(path, `${JSON.stringify(outcome)}\n`, 0o644, undefined, false);
	} catch {
		await rm(path, {force: true}).catch(() => {}); // Nothing more can be done here.
	}
}

/** undefined = nothing was ever changed here. */
export async function readOutcome(stateDir: string): Promise<Outcome | undefined> {
	try {
		return JSON.parse(await readFile(outcomePath(stateDir), 'utf8')) as Outcome;
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return undefined;
		throw error;
	}
}
