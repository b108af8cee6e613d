import {mkdirSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {makeCertificate} from '../config/certificate.ts';
import {bundleFiles} from '../config/sources.ts';
import {directoryWith, onramp} from './command.ts';

const root = makeCertificate({from: '2020-01-01', to: '2100-01-01'});
const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');
const planted = 'PLANTED-SECRET';
const token = `${part({alg: 'ES256'})}.${part({exp: 4_102_444_800, aud: ['istio-ca'], sub: planted})}.${'a'.repeat(86)}`;

/** A bundle and the flags that keep a command away from this machine's own places. */
function makePlaces(t: ExecutionContext, {yaml = '', edit = (text: string): string => text} = {}) {
	const directory = directoryWith(t, {'onramp.yaml': yaml});
	const bundle = join(directory, 'bundle');
	mkdirSync(bundle);
	for (const [path, text] of Object.entries(bundleFiles('plain', bundle)))
		writeFileSync(path, path.endsWith('cluster.env') ? edit(text as string) : (text as string));
	writeFileSync(join(bundle, 'root-cert.pem'), root);
	writeFileSync(join(bundle, 'istio-token'), token);
	const flags = ['--config', join(directory, 'onramp.yaml'), '--bundle', bundle, '--envoy', process.execPath];
	return {directory, bundle, flags: [...flags, '--state-dir', directory, '--run-dir', directory]};
}

test('config print › shows each value with what set it', async t => {
	const {flags, directory} = makePlaces(t, {yaml: 'proxy:\n  concurrency: 7\n'});
	const {code, stdout, stderr} = await onramp(['config', 'print', ...flags], {ONRAMP_NAME: 'vm-7'});
	t.deepEqual([code, stderr], [0, '']);
	t.regex(stdout, /^ {2}name: vm-7 {2}# environment ONRAMP_NAME$/m);
	t.true(stdout.includes(`  concurrency: 7  # file ${directory}/onramp.yaml:2\n`));
	t.regex(stdout, /^ {2}namespace: bank {2}# bundle cluster\.env:ISTIO_NAMESPACE$/m);
	t.true(stdout.includes(`stateDir: ${directory}  # flag --state-dir\n`));
	t.regex(stdout, /^ {2}level: info {2}# default$/m);
	const json = await onramp(['config', 'print', '--json', ...flags]);
	t.deepEqual(JSON.parse(json.stdout).config.proxy.concurrency, {
		value: 7,
		origin: {kind: 'file', place: `${directory}/onramp.yaml:2`},
	});
});

test('config check › of what can work ends with 0 and says so', async t => {
	const {flags} = makePlaces(t);
	t.deepEqual(await onramp(['config', 'check', ...flags]), {code: 0, stdout: 'configuration is good\n', stderr: ''});
});

test('config check › of a file that is missing lists it on standard output, and ends with 78', async t => {
	const {flags, directory} = makePlaces(t);
	const {code, stdout} = await onramp(['config', 'check', ...flags, '--envoy', join(directory, 'none')]);
	t.is(code, 78);
	t.regex(stdout, /^problem: \S+none: Envoy is not there\n {2}→ .*\n1 problem\n$/);
});

test('config check › of values that cannot be read lists all of them, and ends with 78', async t => {
	const {flags} = makePlaces(t, {yaml: 'proxy:\n  concurency: 2\nlog:\n  level: loud\n'});
	const {code, stderr} = await onramp(['config', 'check', ...flags], {ONRAMP_STATUS_PORT: 'x'});
	t.is(code, 78);
	t.regex(stderr, /read configuration: 3 problems/);
	t.regex(stderr, /onramp\.yaml:2: unknown setting "proxy\.concurency" \(did you mean "proxy\.concurrency"\?\)/);
	t.regex(stderr, /onramp\.yaml:4: log\.level "loud" is none of/);
	t.regex(stderr, /ONRAMP_STATUS_PORT: status\.port "x" is not a whole number/);
});

test('config check › warns without failing, and refuses a bundle that is cut short', async t => {
	const warned = makePlaces(t);
	writeFileSync(join(warned.bundle, 'istio-token'), '');
	const {code, stdout} = await onramp(['config', 'check', ...warned.flags]);
	t.is(code, 0);
	t.regex(stdout, /^warning: \S+istio-token: the bootstrap token is empty$/m);
	const cut = makePlaces(t, {edit: text => text.replace(/TRUST_DOMAIN=.*\n$/, '')});
	const refused = await onramp(['config', 'check', ...cut.flags]);
	t.is(refused.code, 78);
	t.regex(refused.stderr, /cluster\.env: lacks what istioctl writes into every bundle: TRUST_DOMAIN/);
	t.is((await onramp(['config', 'print', ...cut.flags])).code, 0, 'an agent would start with it');
});

test('secrets › planted in each place that may hold one are in no output of any command', async t => {
	const places = makePlaces(t, {
		yaml: `control-plane:\n  xds-headers: {authorization: ${planted}}\nworkload:\n  metadata: {DB_PASSWORD: ${planted}}\nhealth:\n  probes: {web: {httpGet: {port: 80, httpHeaders: [{name: Authorization, value: ${planted}}]}}}\n`,
		edit: text => `${text}ISTIO_META_API_TOKEN='${planted}'\n`,
	});
	writeFileSync(join(places.bundle, 'istio-token'), `${token.slice(0, -3)}`);
	const env = {
		XDS_HEADER_COOKIE: planted,
		CA_HEADER_X_API_KEY: planted,
		CA_HEADER_X_AUTH: planted,
		ISTIO_META_MY_SECRET: planted,
		ONRAMP_TOKEN: planted,
	};
	const {ONRAMP_TOKEN: _, ...known} = env;
	const tokenFile = join(places.directory, 'token');
	writeFileSync(tokenFile, `${part({alg: 'RS256'})}.${part({sub: planted})}.${planted}`);
	const runs: readonly [string[], Record<string, string>][] = [
		[['config', 'print', ...places.flags], known],
		[['config', 'print', '--json', ...places.flags], known],
		[['config', 'check', ...places.flags], known],
		[['config', 'check', ...places.flags], env],
		[['config', 'print', ...places.flags, '--control-plane-xds-headers', `authorization ${planted}`], known],
		[['config', 'print', ...places.flags, '--health-probes', `{"web":"${planted}"}`], known],
		[['status', ...places.flags], known],
		[['join', '--token-file', tokenFile, ...places.flags], known],
		[['join', places.bundle, ...places.flags.filter((_, i) => i !== 2 && i !== 3)], known],
	];
	for (const [args, variables] of runs) {
		const {stdout, stderr} = await onramp(args, variables);
		t.true((stdout + stderr).length > 0);
		for (const secret of [planted, token.slice(-40)])
			t.false((stdout + stderr).includes(secret), `${args.slice(0, 3).join(' ')}:\n${stdout}${stderr}`);
	}
});
