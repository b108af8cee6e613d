import test from 'ava';
import {onramp} from './command.ts';

const mistakes: readonly [string[], string, string][] = [
	[[], 'name a command: ', 'onramp --help'],
	[['stauts'], 'unknown command "stauts" (did you mean "status"?)', 'onramp --help'],
	[['config', 'chek'], 'unknown command "config chek" (did you mean "check"?)', 'onramp config --help'],
	[['config'], 'name one of config print, config check', 'onramp config --help'],
	[['status', '--jsn'], 'unknown flag --jsn (did you mean "--json"?)', 'onramp status --help'],
	[['run', '--log-leve', 'debug'], 'unknown flag --log-leve (did you mean "--log-level"?)', 'onramp run --help'],
	[['run', 'now'], 'run: unexpected argument "now"', 'onramp run --help'],
	[['run', '--name'], '--name: a value is missing', 'onramp run --help'],
	[
		['run', '--log-level', 'loud'],
		'--log-level: "loud" is none of "debug", "info", "warn", "error"',
		'onramp run --help',
	],
	[['run', '--json'], 'run does not take --json', 'onramp run --help'],
	[['join'], 'join: name either the directory of a bundle, --token-file or --from-istio', 'onramp join BUNDLE'],
	[['join', 'a', '--bundle', 'b'], 'join does not take --bundle', 'onramp join --help'],
	[
		['join', 'a', '--token-file', 'b'],
		'join: name either the directory of a bundle, --token-file or --from-istio',
		'onramp join BUNDLE',
	],
	[['join', 'a', '--wait', 'soon'], '--wait: "soon" is not a duration', 'write it as 30s or 2m'],
	[['status', '--wait', '1', '--watch'], 'status: --watch and --wait exclude each other', 'leave one out'],
];

for (const [args, message, hint] of mistakes) {
	test(`usage › "onramp ${args.join(' ')}" ends with 78, says what is wrong, and what to do`, async t => {
		const {code, stdout, stderr} = await onramp(args);
		const [first, second, ...rest] = stderr.split('\n');
		t.is(code, 78);
		t.is(stdout, '');
		t.true(first!.startsWith(`onramp: ${message}`), stderr);
		t.true(second!.startsWith(`  → ${hint}`), stderr);
		t.deepEqual(rest, ['']);
	});
}
