import {sendCommand} from '../status/index.ts';
import type {Command} from './index.ts';
import {loadFrom} from './load.ts';

export const leaveCommand: Command = {
	usage: 'leave',
	description: 'Leave the mesh and drain Envoy; the agent stays, and its next start joins again',
	hasSettings: true,
	mainSettings: ['config', 'run-dir', 'control-socket'],
	options: yargs =>
		yargs.option('to-istio', {
			type: 'boolean',
			description: "Stop onramp and hand this machine back to Istio's own agent (istio.service)",
		}),
	run: async ({'to-istio': isToIstio, ...flags}) => {
		if (isToIstio === true) return (await import('./join/index.ts')).leaveToIstio();
		const {config} = await loadFrom(flags);
		await sendCommand(config.status.controlSocketPath, 'leave');
		process.stdout.write('left the mesh; no request is in flight\n');
		return 0;
	},
};
