import type {EnvoyExit} from './envoy-process.ts';
import type {LastExit} from './types.ts';

/** `ended with code 1`, `was killed by SIGKILL`, and the last thing it said. */
export function describeExit({code, signal, logTail}: LastExit): string {
	const last = logTail.at(-1);
	const how =
		signal !== undefined
			? `was killed by ${signal}`
			: code !== undefined
				? `ended with code ${code}`
				: 'ended (it was taken over from an earlier agent, so its exit code is not known)';
	return `envoy ${how}${last === undefined ? '' : `: ${last.slice(0, 300)}`}`;
}

/** What to look at next. */
export function hintForExit({code, signal}: EnvoyExit, command: readonly string[], logPath: string): string {
	if (signal === 'SIGKILL') {
		return "nobody but the kernel or a person kills so; look for the out-of-memory killer: journalctl -k -g 'out of memory'";
	}
	if (signal !== undefined) return `see the back-trace in ${logPath} and the .err file beside it`;
	if (code === 1) return `try it by hand: ${command.join(' ')} --mode validate`;
	return `see ${logPath}; it was started with: ${command.join(' ')}`;
}
