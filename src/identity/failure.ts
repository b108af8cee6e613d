import {AgentError, reasonOf} from '../errors.ts';
import type {IdentityFailure} from './types.ts';

/** An error as status shows it. */
export function describe(error: unknown, at: Date): IdentityFailure {
	if (error instanceof AgentError) return {code: error.code, message: error.message, hint: error.hint, at};
	return {code: 'internal', message: reasonOf(error), at};
}

/** The first failure and each doubling: a control plane away for a day must not fill the journal. */
export function isWorthTelling(attempts: number): boolean {
	return Math.log2(attempts) % 1 === 0;
}
