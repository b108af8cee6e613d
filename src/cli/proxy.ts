import {diskReader, findControlSocket} from '../config/index.ts';
import type {ProxyStatus} from '../proxy/types.ts';
import {sendCommand} from '../status/index.ts';
import type {Command, CommandGroup} from './index.ts';

/** Longer than any `proxy.replace-timeout` that makes sense; the agent gives up first and says why. */
const timeoutMs = 600_000;

const replaceCommand: Command = {
	usage: 'replace',
	description:
		'Let a new Envoy take over from the running one without a lost request, as after an upgrade of Envoy; exit code 0 only if it has',
	hasSettings: true,
	mainSettings: ['config', 'run-dir', 'control-socket'],
	options: yargs => yargs.option('json', {type: 'boolean', description: 'Print JSON'}),
	run: async ({json, ...flags}) => {
		const {path, unheard} = findControlSocket({argv: flags, env: process.env, files: diskReader, cwd: process.cwd()});
		for (const fault of unheard) process.stderr.write(`warning: ${fault}\n`);
		const status = (await sendCommand(path, 'proxy-replace', undefined, timeoutMs)) as ProxyStatus;
		const {pid, version, retiring} = status;
		const name = typeof retiring === 'number' ? `pid ${retiring}` : retiring;
		const old = name === undefined ? '' : `; ${name} serves its last connections and ends`;
		const which = pid === undefined ? '' : ` (pid ${pid})`;
		process.stdout.write(
			json ? `${JSON.stringify(status, undefined, '\t')}\n` : `envoy ${version}${which} serves${old}\n`,
		);
		return 0;
	},
};

export const proxyCommand: CommandGroup = {
	usage: 'proxy',
	description: 'Act on the running Envoy',
	commands: [replaceCommand],
};
