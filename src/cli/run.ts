import {runAgent} from '../agent.ts';
import {createLogger} from '../log.ts';
import type {Command} from './index.ts';
import {loadFrom} from './load.ts';

export const runCommand: Command = {
	usage: 'run',
	description: 'Run the agent in the foreground, as the service does',
	hasSettings: true,
	run: async (flags, signal) => {
		const loaded = await loadFrom(flags);
		await runAgent(loaded, createLogger(loaded.config.log), signal);
		return 0;
	},
};
