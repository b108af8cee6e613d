import {fetchStatus, renderStatus} from '../status/index.ts';
import type {Command} from './index.ts';
import {loadFrom} from './load.ts';

export const statusCommand: Command = {
	usage: 'status',
	description: 'Tell how the running agent is doing; exit code 0 only if it is ready',
	hasSettings: true,
	options: yargs =>
		yargs
			.option('json', {type: 'boolean', description: 'Print JSON'})
			.option('wait', {type: 'string', requiresArg: true, description: 'Wait up to this long, as in 30s, for it to be ready'}),
	run: async ({json, wait, ...flags}, signal) => {
		const {config} = await loadFrom(flags);
		const deadlineMs = Date.now() + parseWait(wait);
		for (;;) {
			const report = await fetchStatus(config.status.controlSocketPath).catch((error: unknown) => {
				if (Date.now() >= deadlineMs) throw error;
				return undefined;
			});
			if (report && (report.ready || Date.now() >= deadlineMs || signal.aborted)) {
				process.stdout.write(json ? `${JSON.stringify(report, undefined, '\t')}\n` : renderStatus(report));
				return report.ready ? 0 : 1;
			}
			await new Promise(resolve => setTimeout(resolve, 100));
		}
	},
};

function parseWait(wait: unknown): number {
	const match = /^(\d+)(ms|s|m)?$/.exec(String(wait ?? '0'));
	const unitMs = {ms: 1, s: 1000, m: 60_000}[match?.[2] ?? 's'] ?? 1000;
	return match ? Number(match[1]) * unitMs : 0;
}
