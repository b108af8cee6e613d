import {execFileSync} from 'node:child_process';
import {settings} from '../../src/config/index.ts';
import {version} from '../../src/version.ts';

const known = new Map<string, string>();

/** What `--help` says, of the program or of one of its commands. */
function helpOf(...words: string[]): string {
	const name = words.join(' ');
	const text = known.get(name) ?? askHelp(words);
	known.set(name, text);
	return text;
}

function askHelp(words: readonly string[]): string {
	return execFileSync(process.execPath, ['dist/onramp.cjs', ...words, '--help'], {
		encoding: 'utf8',
		env: {...process.env, NO_COLOR: '1', COLUMNS: '80'},
	});
}

/** First words of the lines below "Commands:". */
export function parseCommands(help: string): readonly string[] {
	const [, list = ''] = /^Commands:\n((?: +.*\n)+)/m.exec(help) ?? [];
	return [...list.matchAll(/^ {2}onramp (.+?)(?: {2}|$)/gm)].map(([, usage]) =>
		usage!
			.split(' ')
			.filter(word => /^[a-z-]+$/.test(word))
			.join(' '),
	);
}

/** Words that lead to a command with a help of its own. */
function listCommands(): readonly string[] {
	return parseCommands(helpOf()).flatMap(command => {
		const below = parseCommands(helpOf(command));
		return below.length === 0 ? [command] : below;
	});
}

const roff = (text: string): string =>
	text
		.replaceAll('\\', '\\e')
		.replaceAll('-', '\\-')
		.replace(/^([.'])/gm, '\\&$1');

/** The manual page: the help of each command, and every setting. */
export function renderManual(): string {
	const section = (title: string, text: string): string =>
		`.SS "onramp ${roff(title)}"\n.nf\n${roff(text.trim())}\n.fi\n`;
	const list = settings.map(
		({key, flag, env, type, description, default: fallback}) =>
			`.TP\n\\fB${roff(key)}\\fR (${roff(type)})\n${roff(description)}${fallback ? ` [${roff(fallback)}]` : ''}\n.br\n\\-\\-${roff(flag)}, ${env}\n`,
	);
	return [
		`.TH ONRAMP 1 "" "onramp ${version}" "User Commands"\n`,
		'.SH NAME\nonramp \\- makes this machine a workload of an Istio mesh\n',
		'.SH SYNOPSIS\n\\fBonramp\\fR COMMAND [\\fIOPTION\\fR]...\n',
		'.SH COMMANDS\n',
		...listCommands().map(command => section(command, helpOf(...command.split(' ')))),
		'.SH SETTINGS\nFlags count more than the environment, and that more than /etc/onramp/onramp.yaml.\n',
		...list,
		'.SH FILES\n/etc/onramp/onramp.yaml, /etc/onramp/bundle, /var/lib/onramp, /run/onramp\n',
		'.SH SEE ALSO\nsystemctl status onramp, journalctl \\-u onramp\\-agent\n',
	].join('');
}

/** For bash: commands, and the flags that the help of each shows. */
export function renderCompletion(): string {
	const commands = listCommands();
	const flagsOf = (command: string): string =>
		[...new Set(helpOf(...command.split(' ')).match(/--[a-z][a-z0-9-]*/g))].toSorted().join(' ');
	const first = [...new Set(commands.map(command => command.split(' ')[0]!))];
	const below = (word: string): readonly string[] =>
		commands.filter(command => command.startsWith(`${word} `)).map(command => command.slice(word.length + 1));
	const groups = first.filter(word => below(word).length > 0);
	return `# Completion of onramp for bash; made from its --help.
_onramp() {
	local word=\${COMP_WORDS[COMP_CWORD]} command=\${COMP_WORDS[1]}
	case $command in
	${groups.join('|')}) if ((COMP_CWORD > 2)); then command+=" \${COMP_WORDS[2]}"; fi ;;
	esac
	if ((COMP_CWORD == 1)); then
		mapfile -t COMPREPLY < <(compgen -W '${first.join(' ')}' -- "$word")
		return
	fi
	case $command in
${groups.map(word => `	'${word}') mapfile -t COMPREPLY < <(compgen -W '${below(word).join(' ')}' -- "$word") ;;`).join('\n')}
${commands.map(command => `	'${command}') mapfile -t COMPREPLY < <(compgen -W '${flagsOf(command)}' -- "$word") ;;`).join('\n')}
	esac
	if ((\${#COMPREPLY[@]} == 0)); then mapfile -t COMPREPLY < <(compgen -f -- "$word"); fi
}
complete -o filenames -F _onramp onramp
`;
}
