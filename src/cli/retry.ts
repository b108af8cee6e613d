import {diskReader, findControlSocket} from '../config/index.ts';
import {sendCommand} from '../status/index.ts';
import type {Command} from './index.ts';

export const retryCommand: Command = {
	usage: 'retry',
	description: 'Have the agent try at once what it waits to try again: certificate, control plane, registration, rules',
	hasSettings: true,
	mainSettings: ['config', 'run-dir', 'control-socket'],
	options: yargs => yargs,
	run: async flags => {
		const {path, unheard} = findControlSocket({argv: flags, env: process.env, files: diskReader, cwd: process.cwd()});
		for (const fault of unheard) process.stderr.write(`warning: ${fault}\n`);
		await sendCommand(path, 'retry');
		process.stdout.write('retry: asked; onramp status tells how it goes\n');
		return 0;
	},
};
