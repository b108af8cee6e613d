import {resolve} from 'node:path';
import {diskReader, findBundleDirectory} from '../config/index.ts';
import {AgentError} from '../errors.ts';
import type {Command} from './index.ts';
import {parseWait} from './wait.ts';

export const joinCommand: Command = {
	usage: 'join [BUNDLE]',
	description: 'Join the mesh with a bundle that istioctl x workload entry configure wrote',
	hasSettings: true,
	withoutSettings: ['bundle'],
	options: yargs =>
		yargs
			.positional('BUNDLE', {
				type: 'string',
				description: 'Directory with cluster.env, mesh.yaml, root-cert.pem, istio-token and hosts',
			})
			.option('token-file', {
				type: 'string',
				requiresArg: true,
				description: 'Bring only a new token, of this file (- is standard input), to an agent that is locked out',
			})
			.option('from-istio', {
				type: 'boolean',
				description: "Take this machine over from Istio's own agent (istio.service)",
			})
			.option('dry-run', {type: 'boolean', description: 'With --from-istio: say what would be done, and do nothing'})
			.option('install-to', {
				type: 'string',
				requiresArg: true,
				description: 'Where the bundle is kept [where it is read: /etc/onramp/bundle]',
			})
			.option('install-only', {type: 'boolean', description: 'Keep bundle and settings, start and wake nothing'})
			.option('wait', {
				type: 'string',
				requiresArg: true,
				description: 'How long to wait for the agent to be ready [60s]',
			}),
	run: async (
		{
			BUNDLE,
			'token-file': tokenFile,
			'from-istio': isFromIstio,
			'dry-run': isDryRun,
			'install-to': to,
			'install-only': isInstallOnly,
			wait,
			...flags
		},
		signal,
	) => {
		const waitMs = parseWait(wait, 60_000);
		const isGiven = [BUNDLE !== undefined, tokenFile !== undefined, isFromIstio === true];
		if (isGiven.filter(Boolean).length !== 1) {
			throw new AgentError('cli.usage', 'join: name either the directory of a bundle, --token-file or --from-istio', {
				hint: 'onramp join BUNDLE; for a new token alone: onramp join --token-file FILE',
			});
		}
		if (isDryRun === true && isFromIstio !== true)
			throw new AgentError('cli.usage', 'join: --dry-run is for --from-istio', {
				hint: 'onramp join BUNDLE looks at everything before it changes anything',
			});
		// Not read at every start of the agent.
		const {bringToken, joinFromIstio, joinWith} = await import('./join/index.ts');
		if (tokenFile !== undefined) return bringToken(String(tokenFile), flags, {waitMs, signal});
		const look = {argv: flags, env: process.env, files: diskReader, cwd: process.cwd()};
		const target = to === undefined ? findBundleDirectory(look).path : resolve(String(to));
		if (isFromIstio === true) return joinFromIstio(target, flags, {isDryRun: isDryRun === true, waitMs, signal});
		return joinWith(resolve(String(BUNDLE)), target, flags, {isInstallOnly: isInstallOnly === true, waitMs, signal});
	},
};
