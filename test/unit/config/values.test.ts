import test from 'ava';
import {suggest} from '../../../src/config/problems.ts';
import * as values from '../../../src/config/values.ts';

const takes = test.macro({
	exec: (t, type: values.ValueType<unknown>, good: Record<string, unknown>, bad: readonly string[]) => {
		for (const [text, value] of Object.entries(good)) t.deepEqual(type.parse(text, '/base'), value, text);
		for (const text of bad) t.throws(() => type.parse(text, '/base'), {instanceOf: values.ValueError}, text);
	},
	title: name => `value › takes ${name}`,
});

test(
	'durations',
	takes,
	values.duration(),
	{'10s': 10_000, '1h30m': 5_400_000, '500ms': 500, '1.5s': 1500, '0': 0, '24h': 86_400_000},
	['', '10', '-1s', '1d', 's', '1e3s', '9999999h', '1h 30m', '1s'.repeat(99)],
);
test('durations of a least length', takes, values.duration(1000), {'1s': 1000}, ['999ms', '0']);
test('sizes', takes, values.bytes, {'1': 1, '64MiB': 67_108_864, '1k': 1000, '2Gi': 2_147_483_648}, [
	'',
	'0',
	'-1',
	'1.5M',
	'1T',
	'999999999999999G',
]);
test('ports', takes, values.port, {'1': 1, '65535': 65_535}, ['0', '65536', '-1', '1e3', '0x50', '', ' ']);
test('booleans', takes, values.boolean, {true: true, T: true, '1': true, False: false, '0': false, no: false}, [
	'',
	'2',
	'maybe',
]);
test('shares', takes, values.share(0, 0.5), {'0.1': 0.1, '.5': 0.5, '0': 0}, ['', '.', '0.6', '-0.1', '1e-1', 'NaN']);
test('file modes', takes, values.fileMode, {'0600': 0o600, '640': 0o640}, ['', '0800', '0o600', '17777']);
test('addresses', takes, values.ipAddress, {'192.0.2.1': '192.0.2.1', '2001:DB8::1': '2001:db8::1'}, [
	'',
	'x',
	'1.2.3',
	'fe80::1%eth0',
]);
test('paths', takes, values.path, {'/a/../b': '/b', 'x/y': '/base/x/y'}, ['', ' ', 'a\0b']);
test('names of Kubernetes', takes, values.dnsLabel, {a: 'a', 'a-1': 'a-1'}, [
	'',
	'A',
	'a/b',
	'a.b',
	'-a',
	'a'.repeat(64),
]);
test('pairs', takes, values.pairs, {'a=b,c=d=e': {a: 'b', c: 'd=e'}, '': {}}, ['a', '=b']);
test('headers', takes, values.headers, {'X-A=1': {'x-a': '1'}}, ['a b=c', 'x-bin=1', 'grpc-x=1', 'x=\u00e9']);
test(
	'scrape targets',
	takes,
	values.scrapeTargets,
	{
		'80,8080/m': [
			{port: 80, path: '/metrics'},
			{port: 8080, path: '/m'},
		],
	},
	['x', '0/m', '80m'],
);

const tls = {isPlaintext: false};
test(
	'endpoints',
	takes,
	values.endpoints,
	{
		'a.b:15012': [{host: 'a.b', port: 15_012, ...tls}],
		'a:1, [2001:db8::1]:2': [
			{host: 'a', port: 1, ...tls},
			{host: '2001:db8::1', port: 2, ...tls},
		],
		'a:15010': [{host: 'a', port: 15_010, isPlaintext: true}],
		'http://a:1': [{host: 'a', port: 1, isPlaintext: true}],
		'https://a:15010/': [{host: 'a', port: 15_010, ...tls}],
	},
	['', 'a', ':1', 'a:0', 'a:65536', '2001:db8::1:2', '[x]:1', 'ftp://a:1', 'a b:1', 'a:1/path', ','],
);

test('suggestion › is the nearest name, if one is near', t => {
	t.is(suggest('naem', ['name', 'namespace']), ' (did you mean "name"?)');
	t.is(suggest('zzzzzz', ['name']), '');
	t.is(suggest('x'.repeat(10_000), ['name']), '');
});
