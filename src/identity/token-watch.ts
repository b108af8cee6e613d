import {AgentError, reasonOf} from '../errors.ts';
import type {TokenSource} from './token-source.ts';

/** The token as the rotator sees it: usable or why not, and whether somebody has replaced it. */
export interface TokenWatch {
	/** Reads it; `error` says why it cannot be used. */
	check(): Promise<{readonly error: AgentError | undefined}>;
	/** True if it is another one than at the last check; of a program that cannot be told. */
	hasChanged(): Promise<boolean>;
	/** Doubts about the token last read. */
	warnings(): readonly string[];
}

export function watchToken(source: TokenSource): TokenWatch {
	let seen: string | undefined;
	let warnings: readonly string[] = [];
	return {
		check: async () => {
			// Looked at before it is read: a token that arrives in between is then seen as a change, never missed.
			seen = await source.mark();
			warnings = [];
			try {
				const {problems} = await source.read();
				warnings = problems.map(problem => problem.message);
				return {error: undefined};
			} catch (error) {
				if (error instanceof AgentError) return {error};
				return {
					error: new AgentError('identity.token_missing', `read token: ${reasonOf(error)}`, {cause: error}),
				};
			}
		},
		hasChanged: async () => (await source.mark()) !== seen,
		warnings: () => warnings,
	};
}
