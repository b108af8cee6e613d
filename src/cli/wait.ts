import {AgentError} from '../errors.ts';

/** `30s`, `500ms`, `2m`; a number alone is seconds. @throws AgentError `cli.usage` */
export function parseWait(wait: unknown, fallbackMs: number): number {
	if (wait === undefined) return fallbackMs;
	const [, number, unit = 's'] = /^(\d{1,6})(ms|s|m|h)?$/.exec(String(wait)) ?? [];
	if (number === undefined) {
		throw new AgentError('cli.usage', `--wait: "${String(wait)}" is not a duration`, {hint: 'write it as 30s or 2m'});
	}
	return Number(number) * {ms: 1, s: 1000, m: 60_000, h: 3_600_000}[unit as 'ms' | 's' | 'm' | 'h'];
}
