import test from 'ava';
import fc from 'fast-check';
import {parseClusterEnv} from '../../../src/config/cluster-env.ts';
import {FileFindings, Findings} from '../../../src/config/problems.ts';
import {fuzzRuns} from '../../support/fuzz.ts';

function parse(text: string) {
	const findings = new Findings();
	const entries = parseClusterEnv(text, new FileFindings('cluster.env', findings));
	const values = Object.fromEntries([...entries].map(([name, {value}]) => [name, value]));
	return {values, entries, problems: findings.problems, warnings: findings.warnings};
}

const reads = test.macro({
	exec: (t, text: string, expected: Record<string, string>) => {
		const {values, problems} = parse(text);
		t.deepEqual(problems, []);
		t.deepEqual(values, expected);
	},
	title: name => `cluster.env › reads ${name}`,
});

test('single quotes as istioctl writes them', reads, "A='it'\"'\"'s'\nB='{\"x\":\"y z\"}'\n", {
	A: "it's",
	B: '{"x":"y z"}',
});
test('bare words', reads, 'A=22,15090\nB=a/b:c.d\nC=*\n', {A: '22,15090', B: 'a/b:c.d', C: '*'});
test('empty values', reads, 'A=\'\'\nB=\nC=""\n', {A: '', B: '', C: ''});
test('escapes within double quotes', reads, 'A="a\\"b\\$c\\`d\\\\e\\n"', {A: 'a"b$c`d\\e\\n'});
test('escapes outside quotes', reads, 'A=a\\ b\\$c', {A: 'a b$c'});
test('an escaped line end as nothing', reads, 'A=a\\\nb\nB="c\\\nd"', {A: 'ab', B: 'cd'});
test('a quoted line end as part of the value', reads, "A='x\ny'\nB=z", {A: 'x\ny', B: 'z'});
test('export, comments, blanks and several assignments on a line', reads, '# c\n\n  export A=1 B=2 # d\n\tC=x#y\n', {
	A: '1',
	B: '2',
	C: 'x#y',
});
test('line ends of Windows', reads, "A='1'\r\nB=2\r\n", {A: '1', B: '2'});
test('what looks active but is quoted', reads, "A='$(reboot); `x` | y'", {A: '$(reboot); `x` | y'});
test(
	'names that are names of object members',
	reads,
	'__proto__=1\nconstructor=2',
	Object.fromEntries([
		['__proto__', '1'],
		['constructor', '2'],
	]),
);

const refuses = test.macro({
	exec: (t, text: string, line: number, message: RegExp) => {
		const {problems} = parse(text);
		t.is(problems.length, 1);
		t.is(problems[0]!.place, `cluster.env:${line}`);
		t.regex(problems[0]!.message, message);
		t.not(problems[0]!.remedy, '');
	},
	title: name => `cluster.env › refuses ${name} and names the line`,
});

test('an expansion', refuses, 'A=1\nB=$HOME', 2, /B holds an expansion/);
test('an expansion in double quotes', refuses, 'A=1\n\nB="x$HOME"', 3, /B holds an expansion/);
test('a command substitution', refuses, 'A=`id`', 1, /command substitution/);
test('a second command', refuses, 'A=1; reboot', 1, /second command/);
test('a pipe', refuses, 'A=1|sh', 1, /a pipe/);
test('a redirection', refuses, 'A=1>/etc/passwd', 1, /redirection/);
test('a home directory', refuses, 'A=~/x', 1, /home directory/);
test('a command', refuses, 'A=1\nrm -rf /', 2, /"rm -rf \/" is not NAME=VALUE/);
test('an open single quote', refuses, "A=1\nB='abc\nC=2\n", 2, /B has a quote that is never closed/);
test('an open double quote', refuses, 'A="abc', 1, /A has a quote that is never closed/);

test('cluster.env › tells of every bad line and reads the good ones', t => {
	const {values, problems} = parse('A=$x\nB=2\nC=`y`\nD=4\n');
	t.deepEqual(
		problems.map(({place}) => place),
		['cluster.env:1', 'cluster.env:3'],
	);
	t.deepEqual(values, {B: '2', D: '4'});
});

test('cluster.env › takes the last of two equal names, with a warning', t => {
	const {values, warnings} = parse('A=1\nB=2\nA=3\n');
	t.is(values['A'], '3');
	t.deepEqual(warnings, ['cluster.env:3: A is set again (first on line 1); this one counts']);
});

test('cluster.env › lists no more than a few problems of one file', t => {
	t.is(parse('x\n'.repeat(100_000)).problems.length, 20);
});

test('cluster.env › reads back every value that is quoted as istioctl quotes it', t => {
	const name = fc.stringMatching(/^[A-Z_][A-Z0-9_]{0,10}$/);
	const value = fc.string({unit: 'binary'}).map(text => text.replaceAll('\0', ''));
	fc.assert(
		fc.property(fc.dictionary(name, value), entries => {
			const text = Object.entries(entries).map(([key, each]) => `${key}='${each.replaceAll("'", `'"'"'`)}'\n`);
			const {values, problems} = parse(text.join(''));
			t.deepEqual(problems, []);
			t.deepEqual({...values}, {...entries});
		}),
		fuzzRuns(100),
	);
});

test('cluster.env › survives any text', t => {
	const piece = fc.constantFrom(
		'A=',
		"'",
		'"',
		'\\',
		'$',
		'`',
		';',
		'\n',
		'\r',
		' ',
		'#',
		'export ',
		'~',
		'=',
		'B=x',
		'\u00a0',
		'\ud800',
	);
	fc.assert(
		fc.property(
			fc.oneof(
				fc.string({unit: 'binary', maxLength: 500}),
				fc.array(piece, {maxLength: 200}).map(each => each.join('')),
			),
			text => {
				const {entries, problems} = parse(text);
				for (const [name, {value, line}] of entries) {
					t.regex(name, /^[A-Za-z_][A-Za-z0-9_]*$/);
					t.true(value.length <= text.length && line >= 1 && line <= text.split('\n').length);
				}
				t.true(problems.length <= 20);
			},
		),
		fuzzRuns(500),
	);
});

test('cluster.env › reads the largest hostile files in bounded time', t => {
	const started = performance.now();
	for (const unit of ['A=1\n', "'", 'A=\\', 'A="$', '\\\n', ' ', 'A=\u00a0'])
		parse(unit.repeat(Math.floor(2 ** 20 / unit.length)));
	t.true(performance.now() - started < 10_000);
});
