import test from 'ava';
import {describeOlder, parseEndpoint} from '../../../src/capture/older.ts';

test('older connections › addresses of the table of sockets', t => {
	t.deepEqual(parseEndpoint('0B0012C6:0050'), ['198.18.0.11', 80]);
	t.deepEqual(parseEndpoint('B80D0120000000000000000011000000:01BB'), ['2001:db8::11', 443]);
	t.deepEqual(parseEndpoint('0000000000000000FFFF00000B0012C6:1F90'), ['198.18.0.11', 8080]);
});

test('older connections › the most frequent are named, the others counted', t => {
	const older = Array.from({length: 12}, (_, i) => ({
		direction: 'out' as const,
		what: `to 10.0.0.${i}:80`,
		uid: 7,
		count: 20 - i,
	}));
	const lines = describeOlder(older, 'end');
	t.is(lines.length, 11);
	t.is(lines[0], 'older than the rules, ended when it next speaks: outbound, to 10.0.0.0:80, uid 7, 20 connections');
	t.is(lines[10], 'older than the rules: 19 connections more');
	t.deepEqual(describeOlder([], 'leave'), []);
});
