import yargs, {type Argv} from 'yargs';
import {settings} from '../config/index.ts';
import {systemCode} from '../errors.ts';
import {version} from '../version.ts';
import {captureCommand} from './capture.ts';
import {cloudConfigCommand} from './cloud-config.ts';
import {configCommand} from './config.ts';
import {dnsCommand} from './dns.ts';
import {doctorCommand} from './doctor.ts';
import {readyCommand, unreadyCommand} from './health.ts';
import {joinCommand} from './join.ts';
import {leaveCommand} from './leave.ts';
import type {PlainFlags} from './plain-run.ts';
import {proxyCommand} from './proxy.ts';
import {retryCommand} from './retry.ts';
import {runCommand} from './run.ts';
import {statusCommand} from './status.ts';
import {explainUsage} from './usage.ts';

/** What a command gets: parsed flags by their kebab-case names, and the signal that says "end in order". */
export type Flags = Readonly<Record<string, string | boolean | number | undefined>>;

export interface Command {
	readonly usage: string;
	readonly description: string;
	/** Whether the settings of the daemon are flags of this command. */
	readonly hasSettings: boolean;
	/** Flags of settings that mean nothing here; they are refused. */
	readonly withoutSettings?: readonly string[];
	/** Flags of the few settings that matter here; the others are taken, and only `--help-all` shows them. */
	readonly mainSettings?: readonly string[];
	readonly options?: (yargs: Argv) => Argv;
	/** Its own flags, where the parser need not be loaded for it; `options` describes them for people. */
	readonly plain?: PlainFlags;
	/** Returns the exit code. */
	run(flags: Flags, signal: AbortSignal): Promise<number>;
}

/** Commands that share a first word, as `config print` and `config check` do. */
export interface CommandGroup {
	readonly usage: string;
	readonly description: string;
	readonly commands: readonly Command[];
}

const versionCommand: Command = {
	usage: 'version',
	description: 'Print the version',
	hasSettings: false,
	run: async () => {
		process.stdout.write(`onramp ${version} (node ${process.version})\n`);
		return 0;
	},
};

const commands: readonly (Command | CommandGroup)[] = [
	runCommand,
	joinCommand,
	statusCommand,
	leaveCommand,
	retryCommand,
	readyCommand,
	unreadyCommand,
	doctorCommand,
	captureCommand,
	configCommand,
	dnsCommand,
	proxyCommand,
	cloudConfigCommand,
	versionCommand,
];

/** Parses argv and runs one command. @throws AgentError `cli.usage` for anything not understood */
export async function runCli(argv: readonly string[], signal: AbortSignal): Promise<number> {
	for (const stream of [process.stdout, process.stderr]) stream.on('error', ignoreClosedReader);
	let code = 0;
	const showsAll = argv.includes('--help-all');
	const cli = yargs(showsAll ? [...argv.filter(word => word !== '--help-all'), '--help'] : [...argv])
		.scriptName('onramp')
		.usage('$0 COMMAND\n\nMakes this virtual machine a workload of an Istio mesh.')
		.version(version)
		.help()
		.alias('help', 'h')
		// Messages are explained by their English text.
		.locale('en')
		.strict()
		.strictCommands()
		.demandCommand(1, `name a command: ${commands.map(firstWord).join(', ')}`)
		.parserConfiguration({
			'camel-case-expansion': false,
			'parse-numbers': false,
			'duplicate-arguments-array': false,
			'boolean-negation': false,
		})
		.wrap(Math.min(120, process.stdout.columns ?? 80))
		.exitProcess(false)
		.option('help-all', {type: 'boolean', description: 'Show every setting', global: true})
		.fail((message, error) => {
			// Its own errors have a name; ours, and defects, pass.
			throw error && error.name !== 'YError' ? error : explainUsage(error?.message ?? message, argv, vocabulary);
		});
	const add = (parent: Argv, command: Command): void => {
		parent.command(
			command.usage,
			command.description,
			builder => {
				// Named first, so that what is the command's own stands above the settings.
				builder.group(['help', 'help-all'], 'Options:').hide('version');
				command.options?.(builder);
				if (command.hasSettings) addSettings(builder, command, showsAll);
				return builder;
			},
			async flags => {
				code = await command.run(flags as Flags, signal);
			},
		);
	};
	for (const entry of commands) {
		if (!('commands' in entry)) add(cli, entry);
		else
			cli.command(entry.usage, entry.description, builder => {
				for (const command of entry.commands) add(builder, command);
				return builder.demandCommand(
					1,
					`name one of ${entry.commands.map(({usage}) => `${entry.usage} ${usage}`).join(', ')}`,
				);
			});
	}
	await cli.parseAsync();
	return code;
}

/** `onramp status --watch | head`: who has read enough does not want to hear of it, and an agent does not end for it. */
function ignoreClosedReader(error: Error): void {
	if (systemCode(error) !== 'EPIPE') throw error;
}

const firstWord = ({usage}: {readonly usage: string}): string => usage.split(' ')[0]!;

/** What could have been meant by a word that is not known. */
const vocabulary = {
	commands: commands.map(firstWord),
	subcommands: new Map(
		commands.flatMap(entry => ('commands' in entry ? [[entry.usage, entry.commands.map(firstWord)] as const] : [])),
	),
	flags: [
		...settings.map(({flag}) => flag),
		'json',
		'wait',
		'watch',
		'type',
		'install-to',
		'install-only',
		'format',
		'force',
		'confirm',
		'confirm-by',
		'take-over',
		'all',
		'if-enabled',
		'token-file',
		'from-istio',
		'to-istio',
		'dry-run',
		'ask-ca',
		'package',
		'reason',
		'help',
		'help-all',
		'version',
	],
};

/** Every setting of the daemon as a flag; the rare ones are hidden from the ordinary help. */
function addSettings(yargs: Argv, {withoutSettings = [], mainSettings}: Command, showsAll: boolean): void {
	for (const {flag, type, description, choices, default: fallback, isCommon} of settings) {
		if (withoutSettings.includes(flag)) continue;
		const isShown = mainSettings ? mainSettings.includes(flag) : isCommon;
		yargs.option(flag, {
			type: 'string',
			description: fallback ? `${description} [${fallback}]` : description,
			...(choices ? {choices} : {}),
			// A boolean that is only named is meant.
			...(type === 'boolean' ? {coerce: (value: unknown) => (value === '' ? 'true' : value)} : {requiresArg: true}),
			hidden: !isShown && !showsAll,
			group: 'Settings (all: --help-all; also ONRAMP_* and onramp.yaml):',
		});
	}
}
