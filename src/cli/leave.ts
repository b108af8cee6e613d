import {sendCommand} from '../status/index.ts';
import type {Command} from './index.ts';
import {loadFrom} from './load.ts';

export const leaveCommand: Command = {
	usage: 'leave',
	description: 'Leave the mesh and drain Envoy; the agent stays, and its next start joins again',
	hasSettings: true,
	mainSettings: ['config', 'run-dir', 'control-socket'],
	run: async flags => {
		const {config} = await loadFrom(flags);
		await sendCommand(config.status.controlSocketPath, 'leave');
		process.stdout.write('left the mesh; no request is in flight\n');
		return 0;
	},
};
