import {suggest} from '../config/index.ts';
import {AgentError} from '../errors.ts';

export interface Vocabulary {
	readonly commands: readonly string[];
	/** By the command they belong to. */
	readonly subcommands: ReadonlyMap<string, readonly string[]>;
	/** Without the dashes. */
	readonly flags: readonly string[];
}

/**
 * A command line that was not understood, in our words: what is wrong, and what was perhaps meant.
 * @param message - what the parser says, in English
 */
export function explainUsage(message: string, argv: readonly string[], vocabulary: Vocabulary): AgentError {
	const [first = ''] = argv;
	const isCommand = vocabulary.commands.includes(first);
	const fail = (text: string) =>
		new AgentError('cli.usage', text, {hint: isCommand ? `onramp ${first} --help` : 'onramp --help'});
	const [, list] = /^Unknown (?:argument|command)s?: (.+)$/.exec(message) ?? [];
	// Of a command that is not known, nothing else can be.
	const unknown = list?.split(', ').filter(name => isCommand || name === first || isFlag(name, argv));
	if (unknown !== undefined) return fail(unknown.map(name => describe(name, argv, vocabulary)).join('; '));
	if (message.startsWith('Not enough non-option arguments')) return fail(`${first}: an argument is missing`);
	const [, flags] = /^Not enough arguments following: (.+)$/.exec(message) ?? [];
	if (flags !== undefined) return fail(`--${flags}: a value is missing`);
	const [, flag, given, choices] = /Argument: (\S+), Given: (".*?"), Choices: (.+)/.exec(message) ?? [];
	if (flag !== undefined) return fail(`--${flag}: ${given} is none of ${choices}`);
	return fail(message.replaceAll(/\s*\n\s*/g, ' ').trim());
}

function describe(name: string, argv: readonly string[], {commands, subcommands, flags}: Vocabulary): string {
	if (isFlag(name, argv) && flags.includes(name)) return `${argv[0]} does not take --${name}`;
	if (isFlag(name, argv)) return `unknown flag --${name}${suggest(name, flags).replace('"', '"--')}`;
	const [first = ''] = argv;
	const known = first === name ? commands : (subcommands.get(first) ?? []);
	if (known.length === 0) return `${first}: unexpected argument "${name}"`;
	return `unknown command "${first === name ? name : `${first} ${name}`}"${suggest(name, known)}`;
}

function isFlag(name: string, argv: readonly string[]): boolean {
	return argv.some(word => word.startsWith('-') && word.replace(/^-+/, '').split('=')[0] === name);
}
