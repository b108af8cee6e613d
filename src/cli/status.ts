import {AgentError} from '../errors.ts';
import {fetchStatus, renderStatus} from '../status/index.ts';
import type {Command} from './index.ts';
import {loadFrom} from './load.ts';

export const statusCommand: Command = {
	usage: 'status',
	description: 'Tell how the running agent is doing; exit code 0 only if it is ready',
	hasSettings: true,
	options: yargs =>
		yargs.option('json', {type: 'boolean', description: 'Print JSON'}).option('wait', {
			type: 'string',
			requiresArg: true,
			description: 'Wait up to this long, as in 30s, for it to be ready',
		}),
	run: async ({json, wait, ...flags}, signal) => {
		const waitMs = parseWait(wait);
		const {config} = await loadFrom(flags);
		const deadlineMs = performance.now() + waitMs;
		for (;;) {
			const report = await fetchStatus(config.status.controlSocketPath).catch((error: unknown) => {
				if (performance.now() >= deadlineMs || signal.aborted) throw error;
				return undefined;
			});
			if (report && (report.ready || performance.now() >= deadlineMs || signal.aborted)) {
				process.stdout.write(json ? `${JSON.stringify(report, undefined, '\t')}\n` : renderStatus(report));
				return report.ready ? 0 : 1;
			}
			await new Promise(resolve => setTimeout(resolve, 100));
		}
	},
};

/** `30s`, `500ms`, `2m`; a number alone is seconds. */
function parseWait(wait: unknown): number {
	if (wait === undefined) return 0;
	const [, number, unit = 's'] = /^(\d{1,6})(ms|s|m)?$/.exec(String(wait)) ?? [];
	if (number === undefined) {
		throw new AgentError('cli.usage', `--wait: "${String(wait)}" is not a duration`, {hint: 'write it as 30s or 2m'});
	}
	return Number(number) * {ms: 1, s: 1000, m: 60_000}[unit as 'ms' | 's' | 'm'];
}
