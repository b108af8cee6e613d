import {resolve} from 'node:path';
import {settings} from '../config/index.ts';
import {AgentError} from '../errors.ts';
import type {Command} from './index.ts';

export const cloudConfigCommand: Command = {
	usage: 'cloud-config [BUNDLE]',
	description: 'Print user-data for cloud-init that makes a new machine join with a bundle; it holds the token',
	hasSettings: true,
	withoutSettings: ['bundle', 'config'],
	options: yargs =>
		yargs
			.positional('BUNDLE', {type: 'string', description: 'Directory that "istioctl x workload entry configure" wrote'})
			.option('bundle', {type: 'string', requiresArg: true, description: 'The same, as a flag'})
			.option('package', {
				type: 'string',
				requiresArg: true,
				description:
					'What to install, separated by commas: names for a repository, URLs, paths on that machine. Without: nothing, the image has it',
			})
			.option('wait', {
				type: 'string',
				requiresArg: true,
				description: 'How long cloud-init waits for the machine to be in the mesh',
				default: '120s',
			}),
	run: async ({BUNDLE, bundle, package: packages, wait, ...flags}) => {
		if ((BUNDLE === undefined) === (bundle === undefined)) {
			throw new AgentError('cli.usage', 'cloud-config: name one directory of a bundle', {
				hint: 'onramp cloud-config BUNDLE, or onramp cloud-config --bundle BUNDLE',
			});
		}
		// Not read at every start of the agent.
		const {makeCloudConfig} = await import('./cloud-config/make.ts');
		const joinFlags = settings.flatMap(({flag}) =>
			flags[flag] === undefined ? [] : [`--${flag}`, String(flags[flag])],
		);
		const {text, warnings} = await makeCloudConfig({
			bundle: resolve(String(BUNDLE ?? bundle)),
			flags,
			joinFlags: [...joinFlags, '--wait', String(wait)],
			packages: packages === undefined ? [] : String(packages).split(','),
		});
		for (const warning of warnings) process.stderr.write(`warning: ${warning}\n`);
		process.stdout.write(text);
		return 0;
	},
};
