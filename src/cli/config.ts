import {checkConfig, diskReader, renderConfig} from '../config/index.ts';
import type {Command, CommandGroup} from './index.ts';
import {loadFrom} from './load.ts';

const print: Command = {
	usage: 'print',
	description: 'Print every value in force and where it came from, secrets redacted',
	hasSettings: true,
	options: yargs => yargs.option('json', {type: 'boolean', description: 'Print JSON'}),
	run: async ({json, ...flags}) => {
		const loaded = await loadFrom(flags);
		process.stdout.write(renderConfig(loaded, json ? 'json' : 'yaml'));
		return 0;
	},
};

const check: Command = {
	usage: 'check',
	description: 'Check the configuration and the files it names; change nothing',
	hasSettings: true,
	run: async flags => {
		const loaded = await loadFrom(flags, {isStrict: true});
		for (const warning of loaded.warnings) process.stdout.write(`warning: ${warning}\n`);
		const problems = await checkConfig(loaded, diskReader);
		for (const {place, message, remedy, severity} of problems) {
			process.stdout.write(
				`${severity === 'error' ? 'problem' : 'warning'}: ${place}: ${message}\n${remedy ? `  → ${remedy}\n` : ''}`,
			);
		}
		const fatal = problems.filter(({severity}) => severity === 'error').length;
		process.stdout.write(
			fatal === 0 ? 'configuration is good\n' : `${fatal} ${fatal === 1 ? 'problem' : 'problems'}\n`,
		);
		return fatal === 0 ? 0 : 78;
	},
};

export const configCommand: CommandGroup = {
	usage: 'config',
	description: 'Print or check the configuration',
	commands: [print, check],
};
