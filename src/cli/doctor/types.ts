import type {Config, LoadedConfig, Problem} from '../../config/index.ts';
import type {AgentError} from '../../errors.ts';
import type {StatusReport} from '../../status/index.ts';

/**
 * - `ok`: as it should be
 * - `warn`: works, less well or not for long
 * - `fail`: does not work
 * - `skip`: could not be looked at, or has nothing to be looked at
 */
export type Verdict = 'ok' | 'warn' | 'fail' | 'skip';

export interface Finding {
	readonly verdict: Verdict;
	/** What was seen, with the value. */
	readonly message: string;
	/** What to do about it; always there with `warn` and `fail`. */
	readonly remedy?: string | undefined;
}

/** What the checks are made on, gathered once. */
export interface Patient {
	/** Undefined when the configuration cannot be read; `problems` then says why. */
	readonly loaded: LoadedConfig | undefined;
	/** Of the configuration and of the files it names. */
	readonly problems: readonly Problem[];
	/** What a running agent says; undefined when none answers, and `unreachable` then says why. */
	readonly report: StatusReport | undefined;
	readonly unreachable: AgentError | undefined;
	readonly controlSocketPath: string;
	readonly now: Date;
	/** The longest that one step over the network may take. */
	readonly timeoutMs: number;
}

export interface Check {
	readonly name: string;
	run(patient: Patient): Promise<readonly Finding[]>;
}

/** A check that can only be made with a configuration. */
export function withConfig(
	name: string,
	run: (config: Config, patient: Patient) => Promise<readonly Finding[]>,
): Check {
	return {
		name,
		run: async patient =>
			patient.loaded ? run(patient.loaded.config, patient) : [skip('there is no configuration that can be read')],
	};
}

export const ok = (message: string): Finding => ({verdict: 'ok', message});
export const skip = (message: string): Finding => ({verdict: 'skip', message});
export const warn = (message: string, remedy: string): Finding => ({verdict: 'warn', message, remedy});
export const fail = (message: string, remedy: string): Finding => ({verdict: 'fail', message, remedy});
