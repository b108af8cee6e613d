import test from 'ava';
import fc from 'fast-check';
import {stringify} from 'yaml';
import {parseHosts} from '../../../src/config/hosts.ts';
import {parseMeshYaml} from '../../../src/config/mesh-yaml.ts';
import {parseOnrampYaml} from '../../../src/config/onramp-yaml.ts';
import {FileFindings, Findings} from '../../../src/config/problems.ts';
import {settings} from '../../../src/config/settings.ts';
import {fuzzRuns} from '../../support/fuzz.ts';

function mesh(text: string) {
	const findings = new Findings();
	const parsed = parseMeshYaml(text, new FileFindings('mesh.yaml', findings));
	return {
		...parsed,
		problems: findings.problems.map(({place, message}) => `${place}: ${message}`),
		warnings: findings.warnings,
	};
}

test('mesh.yaml › keeps unknown fields and takes the names of the proto', t => {
	const {fields, problems} = mesh(
		'other: 1\ndefaultConfig:\n  discovery_address: a:1\n  newField: {x: [1, null]}\n  tracing: null\n',
	);
	t.deepEqual(problems, []);
	t.deepEqual(fields, {discoveryAddress: 'a:1', newField: {x: [1, null]}});
});

test('mesh.yaml › turns metadata into text as it is written', t => {
	const {metadata, warnings} = mesh(
		'defaultConfig:\n  proxyMetadata: {A: true, B: 0123, C: 1e3, D: "x", E: 2020-01-01}\n',
	);
	t.deepEqual(
		[...metadata].map(([name, {value}]) => [name, value]),
		[
			['A', 'true'],
			['B', '0123'],
			['C', '1e3'],
			['D', 'x'],
			['E', '2020-01-01'],
		],
	);
	t.is(warnings.length, 3);
});

test('mesh.yaml › refuses metadata that is no single value', t => {
	t.deepEqual(mesh('defaultConfig:\n  proxyMetadata:\n    A: [1]\n').problems, [
		'mesh.yaml:3: proxyMetadata.A is not text',
	]);
});

const layers = 'bcdefghi'
	.split('')
	.map((name, index) => `${name}: &${name} [${Array(9).fill(`*${'abcdefgh'[index]}`).join(',')}]`);

const hostile: [string, string, RegExp][] = [
	['an alias bomb', `a: &a [x]\n${layers.join('\n')}\n`, /uses more than 16 aliases/],
	['an alias of itself', 'defaultConfig: &a {b: *a}\n', /uses more than 16 aliases/],
	['an alias without an anchor', 'defaultConfig: *a\n', /alias without an anchor|not YAML/],
	['deep lists', `defaultConfig: ${'['.repeat(5000)}`, /nested too deeply|levels deep|not YAML/],
	[
		'deep maps',
		Array.from({length: 200}, (_, depth) => `${' '.repeat(depth)}a:`).join('\n'),
		/more than 64 levels deep/,
	],
	['too many values', `defaultConfig: [${'1,'.repeat(60_000)}1]\n`, /more than 50000 values/],
	['a file larger than it can be', `defaultConfig: {a: "${'x'.repeat(300_000)}"}`, /larger than 262144 bytes/],
	['several documents', '--- {}\n--- {}\n', /not YAML/],
	['keys that are maps', '{{a: b}: c}\n', /key that is not text/],
];

for (const [what, text, message] of hostile)
	test(`mesh.yaml › refuses ${what}`, t => {
		const {problems} = mesh(text);
		t.is(problems.length, 1);
		t.regex(problems[0]!, message);
	});

test('mesh.yaml › survives any text', t => {
	const piece = fc.constantFrom(
		'defaultConfig:',
		'proxyMetadata:',
		' ',
		'  ',
		'\n',
		'a',
		': ',
		'- ',
		'[',
		']',
		'{',
		'}',
		',',
		'&a ',
		'*a',
		'? ',
		'|',
		'>',
		'!!binary ',
		'!x ',
		'"',
		"'",
		'#',
		'---\n',
		'%',
		'\t',
		'<<: ',
		'.nan',
		'1',
	);
	fc.assert(
		fc.property(
			fc.oneof(
				fc.string({unit: 'binary', maxLength: 200}),
				fc.array(piece, {maxLength: 60}).map(each => each.join('')),
			),
			text => {
				const {fields, metadata} = mesh(text);
				t.is(typeof JSON.stringify(fields), 'string');
				for (const {value} of metadata.values()) t.is(typeof value, 'string');
				const findings = new Findings();
				parseOnrampYaml(text, settings, new FileFindings('f', findings));
				parseHosts(text, new FileFindings('f', findings));
			},
		),
		fuzzRuns(1000),
	);
});

test('mesh.yaml › reads back any ProxyConfig of unknown fields, or says what is wrong', t => {
	fc.assert(
		fc.property(fc.dictionary(fc.stringMatching(/^x[a-zA-Z]{0,8}$/), fc.jsonValue({maxDepth: 4})), config => {
			const {fields, problems} = mesh(stringify({defaultConfig: config}));
			t.deepEqual(problems, []);
			t.is(
				JSON.stringify(fields),
				JSON.stringify(Object.fromEntries(Object.entries(config).filter(([, value]) => value !== null))),
			);
		}),
		fuzzRuns(100),
	);
});
