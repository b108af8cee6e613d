import test from 'ava';
import {parsePlainRun} from '../../../src/cli/plain-run.ts';

test('plain run › settings with their values are taken, in either form', t => {
	t.deepEqual(parsePlainRun(['run']), {});
	t.deepEqual(parsePlainRun(['run', '--log-level', 'debug', '--bundle=/b', '--status-port', '0']), {
		'log-level': 'debug',
		bundle: '/b',
		'status-port': '0',
	});
	t.deepEqual(parsePlainRun(['run', '--name=a=b\nc']), {name: 'a=b\nc'});
	t.deepEqual(parsePlainRun(['run', '--capture', '--name', 'a', '--notify']), {
		capture: 'true',
		name: 'a',
		notify: 'true',
	});
});

for (const words of [
	['status'],
	['join', '--bundle', '/b'],
	['run', '--help'],
	['run', '--no-such', 'x'],
	['run', 'more'],
	['run', '--name'],
	['run', '--name='],
	['run', '--name', '--bundle', '/b'],
	['run', '--name', 'a', '--name', 'b'],
	['run', '--log-level', 'loud'],
	['run', '-h'],
	['run', '--', 'x'],
	['run', '--__proto__', 'x'],
	[],
]) {
	test(`plain run › "${words.join(' ')}" is left to the real parser`, t => {
		t.is(parsePlainRun(words), undefined);
	});
}
