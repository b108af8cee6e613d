import {readFileSync, writeFileSync} from 'node:fs';
import test from 'ava';
import {version} from '../../../src/version.ts';
import {directoryWith, onramp} from './command.ts';

/** Of groups, each command too. */
const commands = [
	...['', 'run', 'join', 'status', 'leave', 'ready', 'unready', 'doctor', 'version'],
	...['config', 'config print', 'config check', 'dns', 'dns lookup', 'proxy', 'proxy replace'],
];

/** A machine on which no command could do its work. */
const broken = {ONRAMP_NO_SUCH_SETTING: 'x', ONRAMP_LOG_LEVEL: 'loud', ONRAMP_CONFIG: '/no/such/file'};

for (const command of commands) {
	test(`help › of "onramp ${command}" reads as the golden file, in 80 columns, whatever the configuration`, async t => {
		const golden = new URL(`help/${command.replace(' ', '-') || 'onramp'}.golden.txt`, import.meta.url);
		const {code, stdout, stderr} = await onramp([...command.split(' ').filter(Boolean), '--help'], broken);
		t.is(code, 0);
		t.is(stderr, '');
		if (process.env['UPDATE_GOLDEN']) writeFileSync(golden, stdout);
		t.is(
			stdout,
			readFileSync(golden, 'utf8'),
			'if this is what it ought to be: UPDATE_GOLDEN=1 npx ava test/unit/cli/help.test.ts',
		);
		for (const line of stdout.split('\n')) t.true(line.length <= 80, line);
	});
}

test('help › of a command has all its settings with --help-all, and --version is its own', async t => {
	const {stdout} = await onramp(['run', '--help-all']);
	t.regex(stdout, /--proxy-crash-budget/);
	const asked = await onramp(['--version'], broken);
	t.deepEqual([asked.code, asked.stdout], [0, `${version}\n`]);
});

test('version › is one line, whatever the configuration', async t => {
	const {code, stdout, stderr} = await onramp(['version'], broken);
	t.deepEqual([code, stdout, stderr], [0, `onramp ${version} (node ${process.version})\n`, '']);
});

test('help › has no colours, not even when they are asked for', async t => {
	for (const args of [['--help'], ['run', '--help'], ['no-such'], ['status', '--run-dir', directoryWith(t)]]) {
		const {stdout, stderr} = await onramp(args, {FORCE_COLOR: '1', TERM: 'xterm-256color'});
		t.notRegex(stdout + stderr, /\x1b/);
	}
});
