import test from 'ava';
import {type LoadInput, loadConfig} from '../../../src/config/index.ts';
import {findTokenFault} from '../../../src/config/token-shape.ts';
import {bundleFiles, type Files, host, memoryReader, problemsOf} from './sources.ts';

const at = '/etc/onramp/bundle';

const load = (files: Files, input: Partial<LoadInput> = {}) =>
	loadConfig({argv: {}, env: {}, host, files: memoryReader(files), ...input});

/** Lengths below the whole at which the file, cut, is taken without a word. */
function unnoticed(bundle: 'autoregister' | 'plain', file: string): number[] {
	const files = bundleFiles(bundle);
	const path = `${at}/${file}`;
	const whole = Buffer.from(files[path] as string);
	return Array.from(whole.keys()).filter(
		length => problemsOf(() => load({...files, [path]: whole.subarray(0, length)}, {isStrict: true})).length === 0,
	);
}

for (const bundle of ['autoregister', 'plain'] as const) {
	test(`bundle › cluster.env of "${bundle}" cut anywhere is refused before it is taken into use`, t => {
		t.deepEqual(unnoticed(bundle, 'cluster.env'), []);
	});
}

test('bundle › hosts cut anywhere is refused, but for the empty file, which istioctl writes too', t => {
	t.deepEqual(unnoticed('autoregister', 'hosts'), [0]);
});

test('bundle › mesh.yaml cut anywhere is refused, but where a whole field after proxyMetadata ends', t => {
	const whole = bundleFiles('autoregister')[`${at}/mesh.yaml`] as string;
	const ends = unnoticed('autoregister', 'mesh.yaml').map(length =>
		whole.slice(0, length).trimEnd().split('\n').at(-1),
	);
	t.deepEqual(ends, ['    TRUST_DOMAIN: ""', '      port: 8080']);
});

test('bundle › a bundle in use that seems cut short is a warning, since it has worked before', t => {
	const files = bundleFiles('autoregister');
	const path = `${at}/cluster.env`;
	const cut = (files[path] as string).split('\n').slice(0, -2).join('\n');
	const {warnings} = load({...files, [path]: `${cut}\n`});
	t.regex(
		warnings.join('\n'),
		/cluster\.env: lacks what istioctl writes into every bundle: TRUST_DOMAIN; the file seems to be cut short/,
	);
});

test('bundle › files of two bundles are told apart', t => {
	const files = {...bundleFiles('autoregister'), [`${at}/mesh.yaml`]: bundleFiles('plain')[`${at}/mesh.yaml`]!};
	t.regex(
		problemsOf(() => load(files, {isStrict: true})).join('\n'),
		/cluster\.env:\d+: CANONICAL_SERVICE is not what mesh\.yaml says/,
	);
});

test('bundle › files copied to the places of Istio may be edited', t => {
	const {[`${at}/cluster.env`]: clusterEnv, [`${at}/mesh.yaml`]: mesh} = bundleFiles('plain');
	const edited = (clusterEnv as string).replace("TRUST_DOMAIN='mesh.example.org'\n", '');
	const files = {'/var/lib/istio/envoy/cluster.env': edited, '/etc/istio/config/mesh': mesh!};
	t.deepEqual(
		problemsOf(() => load(files, {isStrict: true})),
		[],
	);
});

const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');

for (const [algorithm, bytes] of [
	['RS256', 256],
	['ES256', 64],
] as const) {
	test(`token › of ${algorithm} cut anywhere is noticed`, t => {
		const token = `${part({alg: algorithm})}.${part({exp: 1})}.${Buffer.alloc(bytes, 7).toString('base64url')}`;
		t.is(findTokenFault(`${token}\n`), undefined);
		for (let length = 0; length < token.length; length++)
			if (!findTokenFault(token.slice(0, length))) t.fail(`cut to ${length} of ${token.length}`);
	});
}

test('token › a fault quotes nothing of it', t => {
	t.notRegex(findTokenFault(`${part({alg: 'RS256'})}.planted.planted`)!, /planted/);
});
