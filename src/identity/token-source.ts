import {AgentError} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import {fingerprint} from './fingerprint.ts';
import {type BootstrapToken, parseBootstrapToken, readBootstrapToken} from './token.ts';
import {readFromProgram} from './token-program.ts';

/** Where the bootstrap token comes from; asked each time it is needed. */
export interface TokenSource {
	/** @throws AgentError of codes `identity.token_…` */
	read(): Promise<BootstrapToken>;
	/** Changes when there is another token to be read; of a program that cannot be told. */
	mark(): Promise<string>;
}

export interface TokenPlaces {
	/** A file. */
	readonly tokenPath: string;
	/** systemd's copy of a credential, made when the unit was started: it counts first, as long as it can be used. */
	readonly credentialPath?: string | undefined;
	/** A program and its arguments; with one, the files count nothing. */
	readonly tokenProgram?: readonly string[] | undefined;
}

export interface TokenSourceDeps {
	readonly audience: string;
	readonly clock: Clock;
	/** Ends the program that runs. */
	readonly signal: AbortSignal;
}

/** One need asks more than once: the rotator looks, then each connection does. */
const reusedMs = 5000;
/** Who is locked out looks each second, which a file takes well, and a program or what it asks may not. */
const failureReusedMs = 10_000;

export function createTokenSource(places: TokenPlaces, deps: TokenSourceDeps): TokenSource {
	const {tokenProgram = []} = places;
	return tokenProgram.length > 0 ? programSource(tokenProgram, deps) : fileSource(places, deps);
}

function fileSource({tokenPath, credentialPath}: TokenPlaces, {audience, clock}: TokenSourceDeps): TokenSource {
	const paths = credentialPath === undefined ? [tokenPath] : [credentialPath, tokenPath];
	return {
		read: async () => {
			const errors: unknown[] = [];
			for (const path of paths) {
				try {
					return await readBootstrapToken(path, {audience, now: clock.now()});
				} catch (error) {
					errors.push(error);
				}
			}
			// An absent one says less than one that has expired.
			const isAbsent = (error: unknown) => error instanceof AgentError && error.code === 'identity.token_missing';
			throw errors.find(error => !isAbsent(error)) ?? errors.at(-1);
		},
		mark: async () => (await Promise.all(paths.map(fingerprint))).join(),
	};
}

function programSource(command: readonly string[], {audience, clock, signal}: TokenSourceDeps): TokenSource {
	let last: {readonly until: number; readonly answer: Promise<string>} | undefined;
	const ask = (): Promise<string> => {
		if (last && clock.monotonicMs() < last.until) return last.answer;
		const answer = readFromProgram(command, signal);
		const mine = {until: Number.POSITIVE_INFINITY, answer};
		last = mine;
		const keepFor = (ms: number) => () => {
			mine.until = clock.monotonicMs() + ms;
		};
		answer.then(keepFor(reusedMs), keepFor(failureReusedMs));
		return answer;
	};
	return {
		read: async () => parseBootstrapToken(await ask(), `of ${command[0]}`, {audience, now: clock.now()}),
		mark: async () => '',
	};
}
