import {type Check, type Finding, ok} from './types.ts';

/** Whether the configuration can be read, the bundle is whole, and the files and directories it names will do. */
export const configuration: Check = {
	name: 'configuration',
	run: async ({loaded, problems}) => {
		const findings = problems.map(
			({severity, place, message, remedy}): Finding => ({
				verdict: severity === 'error' ? 'fail' : 'warn',
				message: `${place}: ${message}`,
				remedy,
			}),
		);
		const warnings = (loaded?.warnings ?? []).map(
			(message): Finding => ({verdict: 'warn', message, remedy: 'see docs/troubleshooting.md, Configuration'}),
		);
		if (!loaded || findings.some(({verdict}) => verdict === 'fail')) return [...findings, ...warnings];
		const {workload, registration} = loaded.config;
		const auto = workload.group === undefined ? 'not to be registered' : `group ${workload.group}`;
		const group = registration.mode === 'direct' ? `group ${registration.group}, registered by the agent itself` : auto;
		const who = `${workload.namespace}/${workload.serviceAccount}, ${group}, address ${workload.addresses[0]}`;
		return [ok(who), ...findings, ...warnings];
	},
};
