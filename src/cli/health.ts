import {diskReader, findControlSocket} from '../config/index.ts';
import type {Answer} from '../health/index.ts';
import {sendCommand} from '../status/index.ts';
import type {Command, Flags} from './index.ts';

const mainSettings = ['config', 'run-dir', 'control-socket'];

export const readyCommand: Command = {
	usage: 'ready',
	description: 'The application is ready, or maintenance is over: take part in load balancing',
	hasSettings: true,
	mainSettings,
	options: yargs => yargs.option('json', {type: 'boolean', description: 'Print JSON'}),
	run: flags => say('ready', flags),
};

export const unreadyCommand: Command = {
	usage: 'unready',
	description:
		'Maintenance: leave load balancing until "onramp ready", also over a reboot; identity and Envoy stay as they are',
	hasSettings: true,
	mainSettings,
	options: yargs =>
		yargs
			.option('reason', {type: 'string', requiresArg: true, description: 'Why, for whoever looks'})
			.option('json', {type: 'boolean', description: 'Print JSON'}),
	run: flags => say('unready', flags),
};

async function say(word: 'ready' | 'unready', {reason, json, ...flags}: Flags): Promise<number> {
	const {path, unheard} = findControlSocket({argv: flags, env: process.env, files: diskReader, cwd: process.cwd()});
	for (const fault of unheard) process.stderr.write(`warning: ${fault}\n`);
	const answer = (await sendCommand(path, word, {reason})) as Answer;
	process.stdout.write(json ? `${JSON.stringify(answer, undefined, '\t')}\n` : renderAnswer(word, answer));
	if (answer.problem !== undefined) process.stderr.write(`warning: ${answer.problem}\n`);
	return 0;
}

export function renderAnswer(word: 'ready' | 'unready', {state, reason, by}: Answer): string {
	if (by === 'nothing') return `${word}: no WorkloadGroup is set, so the mesh is not told\n`;
	if (word === 'unready')
		return by === 'report'
			? 'unready: reported as unhealthy; peers are told within a second or so\n'
			: 'unready: no longer registered; peers are told when the entry is deleted (10 s, if istiod keeps its default)\n';
	if (state === 'healthy') return by === 'report' ? 'ready: reported as healthy\n' : 'ready: registered again\n';
	return `ready: said, but still ${state}: ${reason}\n`;
}
