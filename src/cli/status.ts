import {hash} from 'node:crypto';
import {diskReader, findControlSocket, type LoadedConfig} from '../config/index.ts';
import {AgentError} from '../errors.ts';
import {fetchStatus, renderStatus, type StatusReport} from '../status/index.ts';
import type {Command} from './index.ts';
import {parseWait} from './wait.ts';

export const statusCommand: Command = {
	usage: 'status',
	description: 'Tell how the running agent is doing; exit code 0 ready, 1 not ready, 2 no agent',
	hasSettings: true,
	mainSettings: ['config', 'run-dir', 'control-socket'],
	options: yargs =>
		yargs
			.option('json', {type: 'boolean', description: 'Print JSON'})
			.option('wait', {
				type: 'string',
				requiresArg: true,
				description: 'Wait up to this long, as in 30s, for it to be ready',
			})
			.option('watch', {type: 'boolean', description: 'Print anew each second until Ctrl-C'}),
	run: async ({json, wait, watch, ...flags}, signal) => {
		if (watch && wait !== undefined)
			throw new AgentError('cli.usage', 'status: --watch and --wait exclude each other', {hint: 'leave one out'});
		const waitMs = parseWait(wait, 0);
		const {path, unheard} = findControlSocket({
			argv: flags,
			env: process.env,
			files: diskReader,
			cwd: process.cwd(),
		});
		for (const fault of unheard) process.stderr.write(`warning: ${fault}\n`);
		const print = (report: StatusReport): void => {
			process.stdout.write(
				json ? `${JSON.stringify(report, undefined, watch ? undefined : '\t')}\n` : renderText(report),
			);
		};
		if (watch) return watchStatus(path, print, signal);
		const report = await waitForReady(path, waitMs, signal);
		print(report);
		return report.ready ? 0 : 1;
	},
};

/** The report that says ready, or the last one before the time was over. @throws AgentError `status.unreachable` */
async function waitForReady(path: string, waitMs: number, signal: AbortSignal): Promise<StatusReport> {
	const deadlineMs = performance.now() + waitMs;
	const isOver = (): boolean => signal.aborted || performance.now() >= deadlineMs;
	for (;;) {
		const report = await fetchStatus(path).catch((error: unknown) => {
			if (isOver()) throw error;
			return undefined;
		});
		if (report && (report.ready || isOver())) return report;
		await sleep(100, signal);
	}
}

/** On a terminal one page that is kept fresh, elsewhere one report after the other. */
async function watchStatus(path: string, print: (report: StatusReport) => void, signal: AbortSignal): Promise<number> {
	let code = 2;
	// Standard output is never destroyed, so that only its error tells.
	let hasReader = true;
	process.stdout.once('error', () => {
		hasReader = false;
	});
	while (!signal.aborted && hasReader) {
		const report = await fetchStatus(path).catch((error: unknown) => error);
		if (process.stdout.isTTY) process.stdout.write('\x1b[H\x1b[2J');
		if (report instanceof AgentError) {
			process.stderr.write(`${report.message}\n`);
			code = 2;
		} else if (report instanceof Error) throw report;
		else {
			print(report as StatusReport);
			code = (report as StatusReport).ready ? 0 : 1;
		}
		await sleep(1000, signal);
	}
	return code;
}

function sleep(ms: number, signal: AbortSignal): Promise<void> {
	return new Promise(resolve => {
		const done = (): void => {
			clearTimeout(timer);
			signal.removeEventListener('abort', done);
			resolve();
		};
		const timer = setTimeout(done, ms);
		if (signal.aborted) done();
		else signal.addEventListener('abort', done);
	});
}

function renderText(report: StatusReport): string {
	const changed = changedSince(report);
	if (changed.length === 0) return renderStatus(report);
	return `${renderStatus(report)}\nchanged since the agent was started, and not in use: ${changed.join(', ')}\n`;
}

/** Files of the configuration that are no longer what this agent has read. */
function changedSince({parts}: StatusReport): string[] {
	const {files = []} = (parts['configuration'] ?? {}) as Partial<Pick<LoadedConfig, 'files'>>;
	return files
		.filter(({path, sha256}) => {
			try {
				const bytes = diskReader.read(path, 2 ** 20);
				return (bytes ? hash('sha256', bytes, 'hex') : null) !== sha256;
			} catch {
				// Who asks may have less right to read it than the agent.
				return false;
			}
		})
		.map(({path}) => path);
}
