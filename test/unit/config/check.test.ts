import test from 'ava';
import {checkConfig, loadConfig, renderProblem} from '../../../src/config/index.ts';
import {makeCertificate} from './certificate.ts';
import {bundleFiles, type Files, host, memoryReader} from './sources.ts';

const now = new Date('2030-06-01T00:00:00Z');
const at = '/etc/onramp/bundle';

const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');
const token = `${part({alg: 'ES256'})}.${part({exp: 1})}.${Buffer.alloc(64, 7).toString('base64url')}`;

const complete = (): Files => ({
	...bundleFiles('autoregister'),
	[`${at}/root-cert.pem`]: makeCertificate({}),
	[`${at}/istio-token`]: token,
	'/usr/local/bin/envoy': 'x',
});

function check(files: Files, denied: string[] = [], argv = {}) {
	const reader = memoryReader(files, denied);
	return checkConfig(loadConfig({argv, env: {}, host, files: reader}), reader, now).map(
		problem => `${problem.severity} ${renderProblem(problem)}`,
	);
}

test('check › finds nothing wrong with a complete bundle', t => {
	t.deepEqual(check(complete()), []);
});

const faults: [string, (files: Files) => string[], RegExp][] = [
	[
		'the root certificate is missing',
		files => check(Object.fromEntries(Object.entries(files).filter(([path]) => !path.endsWith('root-cert.pem')))),
		/^error .*root-cert\.pem: the root certificate is missing/,
	],
	[
		'the root certificate is empty',
		files => check({...files, [`${at}/root-cert.pem`]: ''}),
		/^error .*root-cert\.pem: root certificate: there is no PEM certificate/,
	],
	[
		'the root certificate is binary',
		files => check({...files, [`${at}/root-cert.pem`]: Uint8Array.of(0, 1, 2)}),
		/^error .*there is no PEM certificate/,
	],
	[
		'the root certificate is cut short',
		files => check({...files, [`${at}/root-cert.pem`]: makeCertificate({}).slice(0, 200)}),
		/^error .*cut short/,
	],
	[
		'the second root certificate is cut short',
		files =>
			check({...files, [`${at}/root-cert.pem`]: `${files[`${at}/root-cert.pem`]}\n-----BEGIN CERTIFICATE-----\nMII`}),
		/^error .*cut short/,
	],
	[
		'the root certificate is nonsense in PEM',
		files =>
			check({...files, [`${at}/root-cert.pem`]: '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n'}),
		/^error .*cannot be read/,
	],
	[
		'the root certificate is that of no CA',
		files => check({...files, [`${at}/root-cert.pem`]: makeCertificate({isCa: false})}),
		/^error .*none of the certificates is that of a CA/,
	],
	[
		'the root certificate has expired',
		files => check({...files, [`${at}/root-cert.pem`]: makeCertificate({from: '2029-01-01', to: '2030-01-01'})}),
		/^error .*not valid now/,
	],
	[
		'the token is missing',
		files => check(Object.fromEntries(Object.entries(files).filter(([path]) => !path.endsWith('istio-token')))),
		/^warning .*istio-token: the bootstrap token is missing/,
	],
	[
		'the token is empty',
		files => check({...files, [`${at}/istio-token`]: ' \n'}),
		/^warning .*the bootstrap token is empty/,
	],
	['Envoy is missing', files => check(files, [], {envoy: '/opt/envoy'}), /^error \/opt\/envoy: Envoy is not there/],
	['Envoy is a directory', files => check(files, [], {envoy: '/etc'}), /^error \/etc: is not a file/],
	[
		'Envoy may not be executed',
		files => check(files, ['execute /usr/local/bin/envoy']),
		/^error \/usr\/local\/bin\/envoy: Envoy may not be executed; chmod/,
	],
	[
		'the state directory cannot be written to',
		files => check({...files, '/var/lib/onramp/x': ''}, ['write /var/lib/onramp']),
		/^error \/var\/lib\/onramp: cannot be written to/,
	],
	[
		'the state directory is a file',
		files => check({...files, '/data': ''}, [], {'state-dir': '/data'}),
		/^error \/data: is not a directory/,
	],
	[
		'the parent of the run directory cannot be written to',
		files => check({...files, '/run/x': ''}, ['write /run']),
		/^error \/run: cannot be written to/,
	],
];

for (const [what, run, expected] of faults)
	test(`check › says so when ${what}`, t => {
		const problems = run(complete());
		t.is(problems.length, 1, problems.join('\n'));
		t.regex(problems[0]!, expected);
	});

test('check › takes a bundle of roots of which one has expired', t => {
	const files = complete();
	const old = makeCertificate({from: '2029-01-01', to: '2030-01-01'});
	t.deepEqual(check({...files, [`${at}/root-cert.pem`]: `${old}\n${files[`${at}/root-cert.pem`]}`}), []);
});
