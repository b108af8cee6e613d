import {AgentError, reasonOf} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import {fingerprint} from './fingerprint.ts';
import {readBootstrapToken} from './token.ts';

/** The token file as the rotator sees it: usable or why not, and whether somebody has replaced it. */
export interface TokenWatch {
	/** Reads it; `error` says why it cannot be used. */
	check(): Promise<{readonly error: AgentError | undefined}>;
	/** True if the file is another one, or other content, than at the last check. */
	hasChanged(): Promise<boolean>;
	/** Doubts about the token last read. */
	warnings(): readonly string[];
}

export function watchToken({path, audience, clock}: {path: string; audience: string; clock: Clock}): TokenWatch {
	let seen: string | undefined;
	let warnings: readonly string[] = [];
	return {
		check: async () => {
			// Looked at before it is read: a token that arrives in between is then seen as a change, never missed.
			seen = await fingerprint(path);
			warnings = [];
			try {
				const {problems} = await readBootstrapToken(path, {audience, now: clock.now()});
				warnings = problems.map(problem => problem.message);
				return {error: undefined};
			} catch (error) {
				if (error instanceof AgentError) return {error};
				return {
					error: new AgentError('identity.token_missing', `read token ${path}: ${reasonOf(error)}`, {cause: error}),
				};
			}
		},
		hasChanged: async () => (await fingerprint(path)) !== seen,
		warnings: () => warnings,
	};
}
