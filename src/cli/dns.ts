import {diskReader, findControlSocket} from '../config/index.ts';
import type {Lookup} from '../dns/index.ts';
import {sendCommand} from '../status/index.ts';
import type {Command, CommandGroup} from './index.ts';

const lookupCommand: Command = {
	usage: 'lookup NAME',
	description:
		'Ask the running agent for a name, and tell who answered and why; exit code 0 only if there is an answer',
	hasSettings: true,
	mainSettings: ['config', 'run-dir', 'control-socket'],
	options: yargs =>
		yargs
			.positional('NAME', {type: 'string'})
			.option('type', {type: 'string', requiresArg: true, description: 'A, AAAA, PTR, TXT, … [A]'})
			.option('json', {type: 'boolean', description: 'Print JSON'}),
	run: async ({NAME: name, type, json, ...flags}) => {
		const {path, unheard} = findControlSocket({argv: flags, env: process.env, files: diskReader, cwd: process.cwd()});
		for (const fault of unheard) process.stderr.write(`warning: ${fault}\n`);
		const found = (await sendCommand(path, 'dns-lookup', {name, type})) as Lookup;
		process.stdout.write(json ? `${JSON.stringify(found, undefined, '\t')}\n` : renderLookup(found));
		return found.code === 'NOERROR' && found.records.length > 0 ? 0 : 1;
	},
};

export const dnsCommand: CommandGroup = {
	usage: 'dns',
	description: 'Look up names as applications on this machine do',
	commands: [lookupCommand],
};

/** As `dig` prints records, with who and why in front. */
export function renderLookup({name, type, source, why, code, records, tried}: Lookup): string {
	const lines = [
		`${name} ${type}: ${code ?? 'no answer'}${code === 'NOERROR' && records.length === 0 ? ', no such record' : ''}`,
		`source: ${source} (${why})`,
		...tried.map(({server, result, tookMs}) => `asked:  ${server}: ${result}, ${tookMs} ms`),
		...records.map(record => `${record.name} ${record.ttlSeconds} ${record.type} ${record.value}`),
	];
	// Texts of records come from anybody.
	return `${lines.map(line => line.replace(/[\x00-\x1f\x7f-\x9f]+/g, ' ')).join('\n')}\n`;
}
