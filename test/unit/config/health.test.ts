import test from 'ava';
import {loadConfig} from '../../../src/config/index.ts';
import {parseProbe} from '../../../src/config/probe.ts';
import {ValueError} from '../../../src/config/values.ts';
import {bundleFiles, type Files, host, memoryReader, problemsOf} from './sources.ts';

const load = (files: Files, argv: Record<string, string> = {}, env: Record<string, string> = {}) =>
	loadConfig({argv, env, host, files: memoryReader(files)});
const bundle = bundleFiles('autoregister');
const plain = bundleFiles('plain');
const own = (yaml: string): Files => ({'/etc/onramp/onramp.yaml': yaml});

test('health › the probe of the WorkloadGroup is run as the bundle has it, with the documented defaults', t => {
	const {config, warnings} = load(bundle);
	t.deepEqual(warnings, []);
	t.like(config.health, {mode: 'auto', isReported: true, defaultHost: 'address', stateDir: '/var/lib/onramp/health'});
	t.deepEqual(config.health.probes, [
		{
			name: 'readinessProbe',
			check: {kind: 'http', scheme: 'http', host: undefined, port: 8080, path: '/healthz', headers: []},
			initialDelayMs: 0,
			periodMs: 10_000,
			timeoutMs: 1000,
			successThreshold: 1,
			failureThreshold: 3,
		},
	]);
});

test('health › own probes take its place, as many as there are', t => {
	const yaml = `health:
  probes:
    web: {httpGet: {port: 8443, scheme: HTTPS, path: status, httpHeaders: [{name: Host, value: shop}]}, periodSeconds: 5}
    db: {tcpSocket: {port: "5432", host: localhost}, initialDelaySeconds: 30}
    disk: {exec: {command: [/usr/bin/test, -w, /data]}, timeoutSeconds: 3, failureThreshold: 1}
    api: {grpc: {port: 9000, service: shop.v1}, successThreshold: 2}
`;
	const {probes} = load({...bundle, ...own(yaml)}).config.health;
	t.like(probes, [
		{name: 'web', periodMs: 5000, check: {scheme: 'https', path: '/status', headers: [{name: 'Host', value: 'shop'}]}},
		{name: 'db', initialDelayMs: 30_000, check: {kind: 'tcp', host: 'localhost', port: 5432}},
		{name: 'disk', timeoutMs: 3000, failureThreshold: 1, check: {command: ['/usr/bin/test', '-w', '/data']}},
		{name: 'api', successThreshold: 2, check: {kind: 'grpc', port: 9000, service: 'shop.v1'}},
	]);
	const json = JSON.stringify({web: {tcpSocket: {port: 80}}});
	t.like(load(bundle, {'health-probes': json}).config.health.probes, [{name: 'web'}]);
	t.is(load(bundle, {'health-probes': '{}'}).config.health.isReported, false);
});

test('health › the control plane is told that there is a probe exactly when health will be reported', t => {
	const isTold = (files: Files, argv = {}) => 'readinessProbe' in load(files, argv).config.workload.proxyConfig;
	const group = {group: 'checkout'};
	t.true(isTold(bundle));
	t.false(isTold(bundle, {'health-mode': 'off'}));
	t.false(isTold(bundle, {'health-probes': '{}'}));
	t.false(isTold(plain, group));
	t.true(isTold(plain, {...group, 'health-mode': 'always'}));
	t.true(isTold(plain, {...group, 'health-mode': 'manual'}));
	t.true(isTold(plain, {...group, 'health-probes': '{"web":{"tcpSocket":{"port":80}}}'}));
	t.false(isTold(plain, {'health-mode': 'always'}), 'without an entry there is nothing to have health');
	t.true(isTold(plain, {'health-mode': 'always', 'workload-metadata': 'WORKLOAD_ENTRY=vm-1'}));
});

test("health › Istio's variable for probes of localhost is understood", t => {
	const {config} = load(bundle, {}, {REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION: 'true'});
	t.is(config.health.defaultHost, 'localhost');
});

test('health › a probe in the bundle that is none is a problem with its line', t => {
	const mesh = '/etc/onramp/bundle/mesh.yaml';
	const files = {...bundle, [mesh]: String(bundle[mesh]).replace('port: 8080', 'port: 80800')};
	t.deepEqual(
		problemsOf(() => load(files)),
		[`${mesh}:17: readinessProbe has readinessProbe.httpGet.port that is not a whole number from 1 to 65535`],
	);
});

const refused: readonly [string, unknown, RegExp][] = [
	['no map', 'tcp', /has p that is not a map/],
	['no handler', {periodSeconds: 5}, /needs exactly one of httpGet, tcpSocket, exec, grpc/],
	['two handlers', {tcpSocket: {port: 1}, grpc: {port: 1}}, /needs exactly one of/],
	['a misspelt field', {tcpSocket: {port: 1}, periodSecond: 5}, /with a field "periodSecond", which is none of/],
	['no port', {tcpSocket: {}}, /has p\.tcpSocket without a port/],
	['port 0', {tcpSocket: {port: 0}}, /p\.tcpSocket\.port that is not a whole number from 1/],
	['a named port', {httpGet: {port: 'http'}}, /p\.httpGet\.port that is not a whole number/],
	['a negative time', {tcpSocket: {port: 1}, periodSeconds: -1}, /p\.periodSeconds that is not a whole number/],
	['half a second', {tcpSocket: {port: 1}, timeoutSeconds: 0.5}, /p\.timeoutSeconds/],
	['another scheme', {httpGet: {port: 1, scheme: 'ftp'}}, /neither HTTP nor HTTPS/],
	['a path with a space', {httpGet: {port: 1, path: '/a b'}}, /characters that a URL cannot hold/],
	['a path with a line end', {httpGet: {port: 1, path: '/a\r\nX: y'}}, /is not one line of text/],
	['a host with a path', {tcpSocket: {port: 1, host: 'a/b'}}, /which is no host/],
	['a header with a line end', {httpGet: {port: 1, httpHeaders: [{name: 'a', value: 'b\r\nc: d'}]}}, /not one line/],
	['a header without a name', {httpGet: {port: 1, httpHeaders: [{value: 'b'}]}}, /not a usable header name/],
	['a command line', {exec: {command: 'test -w /data'}}, /p\.exec\.command that is not a list of words/],
	['no command', {exec: {command: []}}, /p\.exec\.command/],
	['a command with NUL', {exec: {command: ['a\0b']}}, /p\.exec\.command/],
];
for (const [what, value, message] of refused)
	test(`probe › ${what} is refused`, t => {
		t.throws(() => parseProbe('p', value), {instanceOf: ValueError, message});
	});

test('probe › what is null or 0 is not set, as in proto-JSON', t => {
	const probe = {httpGet: {port: 80, host: null}, tcpSocket: null, periodSeconds: 0, failureThreshold: 0};
	t.like(parseProbe('p', probe), {periodMs: 10_000, failureThreshold: 3, check: {kind: 'http', path: '/'}});
});

for (const name of ['', '-a', 'a b', 'a\n', 'x'.repeat(64)])
	test(`probe › ${JSON.stringify(name).slice(0, 12)} is no name`, t => {
		const json = JSON.stringify({[name]: {tcpSocket: {port: 80}}});
		t.regex(problemsOf(() => load(bundle, {'health-probes': json})).join(), /whose name/);
	});
