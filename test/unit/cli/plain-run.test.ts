import test from 'ava';
import {parsePlainFlags} from '../../../src/cli/plain-run.ts';

test('plain run › settings with their values are taken, in either form', t => {
	t.deepEqual(parsePlainFlags([]), {});
	t.deepEqual(parsePlainFlags(['--log-level', 'debug', '--bundle=/b', '--status-port', '0']), {
		'log-level': 'debug',
		bundle: '/b',
		'status-port': '0',
	});
	t.deepEqual(parsePlainFlags(['--name=a=b\nc']), {name: 'a=b\nc'});
	t.deepEqual(parsePlainFlags(['--capture', '--name', 'a', '--notify']), {
		capture: 'true',
		name: 'a',
		notify: 'true',
	});
});

for (const words of [
	['status'],
	['--help'],
	['--no-such', 'x'],
	['more'],
	['--name'],
	['--name='],
	['--name', '--bundle', '/b'],
	['--name', 'a', '--name', 'b'],
	['--log-level', 'loud'],
	['-h'],
	['--', 'x'],
	['--__proto__', 'x'],
]) {
	test(`plain run › "${words.join(' ')}" is left to the real parser`, t => {
		t.is(parsePlainFlags(words), undefined);
	});
}

test('plain run › flags of the command itself are taken beside the settings', t => {
	const own = {force: 'boolean', confirm: 'value', format: ['text', 'json']} as const;
	t.deepEqual(parsePlainFlags(['--force', '--confirm', '5s', '--format=json', '--name', 'a'], own), {
		force: true,
		confirm: '5s',
		format: 'json',
		name: 'a',
	});
	for (const words of [['--force', 'more'], ['--force=false'], ['--format', 'xml'], ['--confirm']])
		t.is(parsePlainFlags(words, own), undefined, words.join(' '));
});
