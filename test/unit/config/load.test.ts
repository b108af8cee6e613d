import {execFileSync} from 'node:child_process';
import {mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {diskReader, type LoadInput, loadConfig, renderConfig} from '../../../src/config/index.ts';
import {exitCodeOf} from '../../../src/errors.ts';
import {bundleFiles, type Files, fixtures, host, memoryReader, problemsOf} from './sources.ts';

const load = (files: Files, input: Partial<LoadInput> = {}) =>
	loadConfig({argv: {}, env: {}, host, files: memoryReader(files), ...input});
const bundle = bundleFiles('autoregister');

test('config › reads a bundle as istioctl writes it', t => {
	const {config, warnings} = load(bundle);
	t.deepEqual(warnings, []);
	t.like(config.workload, {
		trustDomain: 'cluster.local',
		namespace: 'shop',
		serviceAccount: 'checkout-vm',
		name: 'vm-1',
		addresses: ['192.0.2.5'],
		group: 'checkout',
		domain: 'shop.svc.cluster.local',
		serviceCluster: 'checkout.shop',
		locality: 'eu-central/zone-a',
		isDnsCaptured: true,
	});
	t.is(config.workload.labels['motto'], "it's fine");
	t.deepEqual(Object.keys(config.workload.metadata), ['MESH_ID', 'NETWORK', 'POD_PORTS', 'WORKLOAD_NAME']);
	t.deepEqual(config.controlPlane.hosts, {'istiod.istio-system.svc': ['203.0.113.10']});
	t.is(config.controlPlane.tokenPath, '/etc/onramp/bundle/istio-token');
	t.deepEqual(config.controlPlane.trustAnchor, {kind: 'file', path: '/etc/onramp/bundle/root-cert.pem'});
	t.true(config.relay.isNameTableWanted);
	t.like(config.workload.proxyConfig, {
		readinessProbe: {httpGet: {path: '/healthz', port: 8080}},
		drainDuration: '45s',
		statusPort: 15_020,
	});
});

test('config › reads the bundle of a revision, with an address of its own and an empty hosts file', t => {
	const {config} = load(bundleFiles('plain'));
	t.deepEqual(config.workload.addresses, ['198.51.100.7', '192.0.2.5']);
	t.deepEqual(config.controlPlane.caEndpoints, [
		{host: 'istiod-canary.istio-system.svc', port: 15_012, isPlaintext: false},
	]);
	t.deepEqual(config.controlPlane.hosts, {});
	t.is(config.workload.group, undefined);
	t.is(config.proxy.concurrency, 4);
	t.is(config.proxy.drainMs, 30_000);
	t.deepEqual(config.proxy.statsPrefixes, ['cluster.outbound']);
	t.deepEqual(config.proxy.statsRegexes, ['.*circuit_breakers.*']);
});

for (const format of ['yaml', 'json'] as const)
	test(`config › prints each value with its origin, as ${format}`, t => {
		const golden = new URL(`autoregister.golden.${format}`, fixtures);
		const input = {
			argv: {'state-dir': 'state'},
			env: {ONRAMP_LOG_LEVEL: 'debug', XDS_HEADER_X_TOKEN: 'hunter2', ISTIO_META_API_TOKEN: 'hunter2'},
		};
		const printed = renderConfig(
			load({...bundle, '/etc/onramp/onramp.yaml': 'proxy:\n  concurrency: 8\n'}, input),
			format,
		);
		if (process.env['UPDATE_GOLDEN']) writeFileSync(golden, printed);
		t.is(printed, readFileSync(golden, 'utf8'));
		t.false(printed.includes('hunter2'));
	});

test('config › has an origin for every value', t => {
	const {config, origins} = load(bundle);
	const visit = (value: unknown, path: string): void => {
		if (origins.has(path)) return;
		if (typeof value !== 'object' || value === null || Array.isArray(value)) t.fail(`no origin of ${path}`);
		else for (const [name, child] of Object.entries(value)) visit(child, path ? `${path}.${name}` : name);
	};
	visit(config, '');
	t.pass();
});

test('config › is frozen to the bottom', t => {
	const visit = (value: unknown, path: string): void => {
		if (typeof value !== 'object' || value === null) return;
		t.true(Object.isFrozen(value), path);
		for (const [name, child] of Object.entries(value)) visit(child, `${path}.${name}`);
	};
	visit(load(bundle).config, 'config');
});

test('config › takes flags over environment over Istio variables over the file over the bundle over the host', t => {
	const yaml = {'/etc/onramp/onramp.yaml': 'workload: {cluster-id: file, name: file}\n'};
	const env = {ONRAMP_CLUSTER_ID: 'onramp', ISTIO_META_CLUSTER_ID: 'istio'};
	const clusterId = (files: Files, input: Partial<LoadInput>) => load(files, input).config.workload.clusterId;
	t.is(clusterId({...bundle, ...yaml}, {argv: {'cluster-id': 'flag'}, env}), 'flag');
	t.is(clusterId({...bundle, ...yaml}, {env}), 'onramp');
	t.is(clusterId({...bundle, ...yaml}, {env: {...env, ONRAMP_CLUSTER_ID: ''}}), 'istio');
	t.is(clusterId({...bundle, ...yaml}, {}), 'file');
	t.is(clusterId(bundleFiles('plain'), {}), 'cluster-west');
	t.is(load({...bundle, ...yaml}).config.workload.name, 'file');
	t.is(clusterId({}, {argv: {namespace: 'x'}}), 'Kubernetes');
});

test('config › overlays proxyMetadata by cluster.env, that by the process, that by the settings', t => {
	const files = {
		...bundle,
		'/etc/onramp/bundle/mesh.yaml':
			'defaultConfig:\n  proxyMetadata: {ISTIO_META_A: mesh, ISTIO_META_B: mesh, ISTIO_META_C: mesh, ISTIO_META_D: mesh}\n',
		'/etc/onramp/bundle/cluster.env':
			"ISTIO_NAMESPACE=shop\nISTIO_META_B='env'\nISTIO_META_C='env'\nISTIO_META_D=env\n",
		'/etc/onramp/onramp.yaml': 'workload:\n  metadata:\n    D: yaml\n',
	};
	t.deepEqual(load(files, {env: {ISTIO_META_C: 'process', ISTIO_META_D: 'process'}}).config.workload.metadata, {
		A: 'mesh',
		B: 'env',
		C: 'process',
		D: 'yaml',
	});
});

test('config › lays PROXY_CONFIG over mesh.yaml, metadata key by key', t => {
	const {config} = load(bundle, {env: {PROXY_CONFIG: 'concurrency: 6\nproxyMetadata: {EXTRA: x}\n'}});
	t.is(config.proxy.concurrency, 6);
	t.like(config.workload.proxyConfig, {concurrency: 6, proxyMetadata: {EXTRA: 'x', SERVICE_ACCOUNT: 'checkout-vm'}});
});

test('config › takes only the agent variables of Istio from the process', t => {
	const {config} = load(bundle, {env: {ISTIO_NAMESPACE: 'other', POD_NAMESPACE: 'own', PILOT_ADDRESS: 'other:15012'}});
	t.is(config.workload.namespace, 'own');
	t.is(config.controlPlane.endpoints[0]!.host, 'istiod.istio-system.svc');
});

test("config › finds the files in Istio's own places", t => {
	const {config} = load({
		'/var/lib/istio/envoy/cluster.env': "ISTIO_NAMESPACE='shop'\n",
		'/etc/istio/config/mesh': 'defaultConfig: {discoveryAddress: "istiod.x.svc:15012"}\n',
		'/etc/certs/root-cert.pem': 'x',
	});
	t.is(config.workload.namespace, 'shop');
	t.is(config.controlPlane.endpoints[0]!.host, 'istiod.x.svc');
	t.is(config.controlPlane.tokenPath, '/var/run/secrets/tokens/istio-token');
	t.deepEqual(config.controlPlane.trustAnchor, {kind: 'file', path: '/etc/certs/root-cert.pem'});
});

test('config › takes the bundle from the file, beside it', t => {
	const files = {...bundleFiles('plain', '/srv/agent/b'), '/srv/agent/a.yaml': 'bundle: b\n'};
	t.is(load(files, {argv: {config: '../../srv/agent/a.yaml'}}).config.workload.namespace, 'bank');
});

test('config › starts relative paths of flags and environment at the working directory', t => {
	const {config} = load(bundle, {argv: {'state-dir': 's'}, env: {ONRAMP_RUN_DIR: '../r'}});
	t.is(config.identity.stateDir, '/home/admin/s/identity');
	t.is(config.relay.socketPath, '/home/r/xds.sock');
});

test('config › prefers the packaged Envoy', t => {
	t.is(load(bundle).config.proxy.binaryPath, '/usr/local/bin/envoy');
	t.is(load({...bundle, '/usr/lib/onramp/envoy': ''}).config.proxy.binaryPath, '/usr/lib/onramp/envoy');
	t.is(load(bundle, {argv: {envoy: '/opt/envoy'}}).config.proxy.binaryPath, '/opt/envoy');
});

const mem =
	(change: Files): (() => unknown) =>
	() =>
		load({...bundle, ...change});
const at = '/etc/onramp/bundle';
const without =
	(name: string): (() => unknown) =>
	() =>
		load(Object.fromEntries(Object.entries(bundle).filter(([path]) => !path.endsWith(name))));

const faults: [string, () => unknown, string[]][] = [
	['cluster.env is missing', without('cluster.env'), [`${at}/cluster.env: this file of the bundle is missing`]],
	['mesh.yaml is missing', without('mesh.yaml'), [`${at}/mesh.yaml: this file of the bundle is missing`]],
	[
		'cluster.env may not be read',
		mem({[`${at}/cluster.env`]: new Error('EACCES: permission denied')}),
		[`${at}/cluster.env: cannot be read: EACCES: permission denied`],
	],
	[
		'cluster.env is binary',
		mem({[`${at}/cluster.env`]: Uint8Array.of(65, 61, 10, 0, 1)}),
		[`${at}/cluster.env:2: is binary: it holds a NUL byte`],
	],
	[
		'cluster.env is not UTF-8',
		mem({[`${at}/cluster.env`]: Uint8Array.of(65, 61, 0xff, 0xfe)}),
		[`${at}/cluster.env: is binary: it is not UTF-8 text`],
	],
	[
		'cluster.env is too large',
		mem({[`${at}/cluster.env`]: 'A=1\n'.repeat(300_000)}),
		[`${at}/cluster.env: is larger than 1048576 bytes`],
	],
	[
		'cluster.env is cut short',
		mem({[`${at}/cluster.env`]: "ISTIO_NAMESPACE='sh"}),
		[`${at}/cluster.env:1: the value of ISTIO_NAMESPACE has a quote that is never closed`],
	],
	['mesh.yaml is binary', mem({[`${at}/mesh.yaml`]: '\0'}), [`${at}/mesh.yaml:1: is binary: it holds a NUL byte`]],
	[
		'mesh.yaml is cut short',
		mem({[`${at}/mesh.yaml`]: 'defaultConfig:\n  a: "x'}),
		[`${at}/mesh.yaml:2: is not YAML: missing closing "quote`],
	],
	['mesh.yaml is a list', mem({[`${at}/mesh.yaml`]: '- a\n'}), [`${at}/mesh.yaml:1: is not a map of settings`]],
	[
		'defaultConfig is text',
		mem({[`${at}/mesh.yaml`]: '\ndefaultConfig: x\n'}),
		[`${at}/mesh.yaml:2: "defaultConfig" is not a map`],
	],
	[
		'a field has the wrong type',
		mem({[`${at}/mesh.yaml`]: 'defaultConfig:\n  statusPort: many\n'}),
		[`${at}/mesh.yaml:2: statusPort is "many", not a whole number`],
	],
	[
		'a duration is not in seconds',
		mem({[`${at}/mesh.yaml`]: 'defaultConfig: {drainDuration: 1m}\n'}),
		[`${at}/mesh.yaml:1: drainDuration is "1m", not a duration in seconds such as "45s"`],
	],
	[
		'hosts has no addresses',
		mem({[`${at}/hosts`]: '# x\nistiod 1.2.3.4\n'}),
		[`${at}/hosts:2: "istiod 1.2.3.4" is not "ADDRESS NAME"`],
	],
	[
		'labels are cut short',
		mem({[`${at}/cluster.env`]: 'ISTIO_NAMESPACE=x\nISTIO_METAJSON_LABELS=\'{"a":\'\n'}),
		[`${at}/cluster.env:2: ISTIO_METAJSON_LABELS "{\\"a\\":" is not a JSON object of texts`],
	],
	[
		'a label is a number',
		mem({[`${at}/cluster.env`]: 'ISTIO_NAMESPACE=x\nISTIO_METAJSON_LABELS=\'{"a":1}\'\n'}),
		[`${at}/cluster.env:2: ISTIO_METAJSON_LABELS "{\\"a\\":1}" is not a JSON object of texts`],
	],
	[
		'a switch is neither true nor false',
		mem({[`${at}/cluster.env`]: 'ISTIO_NAMESPACE=x\nISTIO_META_DNS_AUTO_ALLOCATE=maybe\n'}),
		[`${at}/cluster.env:2: ISTIO_META_DNS_AUTO_ALLOCATE "maybe" is neither true nor false`],
	],
	[
		'a namespace would change the SPIFFE ID',
		mem({[`${at}/cluster.env`]: "ISTIO_NAMESPACE='a/sa/admin'\n"}),
		[`${at}/cluster.env:1: workload.namespace "a/sa/admin"…`],
	],
	[
		'the CA is one that Istio dropped',
		mem({[`${at}/cluster.env`]: 'ISTIO_NAMESPACE=x\nCA_PROVIDER=GoogleCA\n'}),
		[`${at}/cluster.env:2: CA_PROVIDER "GoogleCA" is a CA that Istio no longer knows`],
	],
	[
		'the key is of a size that we do not make',
		mem({[`${at}/cluster.env`]: 'ISTIO_NAMESPACE=x\nWORKLOAD_RSA_KEY_SIZE=1024\n'}),
		[`${at}/cluster.env:2: identity.key-type "rsa-1024"…`],
	],
	[
		'the bundle is not there',
		() => load({}, {argv: {bundle: 'b', namespace: 'x'}}),
		['--bundle: there is no directory "/home/admin/b"'],
	],
	[
		'the bundle is a file',
		() => load(bundle, {env: {ONRAMP_BUNDLE: '/etc/onramp/bundle/hosts', ONRAMP_NAMESPACE: 'x'}}),
		['ONRAMP_BUNDLE: this is not a directory: "/etc/onramp/bundle/hosts"'],
	],
	['there is no bundle at all', () => load({}), ['workload.namespace: is not set, and no bundle has it']],
	['the file is not there', () => load(bundle, {argv: {config: '/x.yaml'}}), ['--config: there is no file "/x.yaml"']],
	[
		'a variable is misspelt',
		() => load(bundle, {env: {ONRAMP_NAMESPCE: 'x'}}),
		['ONRAMP_NAMESPCE: unknown variable (did you mean "ONRAMP_NAMESPACE"?)'],
	],
	[
		'a key is misspelt',
		mem({'/etc/onramp/onramp.yaml': 'proxy:\n  concurency: 2\n'}),
		['/etc/onramp/onramp.yaml:2: unknown setting "proxy.concurency" (did you mean "proxy.concurrency"?)'],
	],
	[
		'a section is a value',
		mem({'/etc/onramp/onramp.yaml': 'proxy: 2\n'}),
		['/etc/onramp/onramp.yaml:1: proxy is a section, and has no settings below it'],
	],
	[
		'a key has no value',
		mem({'/etc/onramp/onramp.yaml': 'workload:\n  name:\n'}),
		['/etc/onramp/onramp.yaml:2: workload.name has no usable value'],
	],
	[
		'a value is a list',
		mem({'/etc/onramp/onramp.yaml': 'run-dir: [a]\n'}),
		['/etc/onramp/onramp.yaml:1: run-dir "[\\"a\\"]" a single value is needed (a path)'],
	],
	[
		'a socket path is too long',
		() => load(bundle, {argv: {'control-socket': `/${'x'.repeat(107)}`}}),
		['--control-socket: status.control-socket…'],
	],
	[
		'a default socket path becomes too long',
		() => load(bundle, {argv: {'run-dir': `/${'x'.repeat(96)}`, 'control-socket': '/c'}}),
		['default of proxy.admin-socket: proxy.admin-socket…'],
	],
	[
		'two listeners have one port',
		() => load(bundle, {argv: {'status-port': 15_021}}),
		['proxy.readiness-port: port 15021 is also that of status.port'],
	],
	[
		'a listener has a port of the mesh',
		() => load(bundle, {env: {ENVOY_PROMETHEUS_PORT: '15006'}}),
		['ENVOY_PROMETHEUS_PORT: proxy.metrics-port port 15006 is also that of the mesh'],
	],
	[
		'the application would be scraped at our own port',
		() => load(bundle, {env: {ISTIO_PROMETHEUS_ANNOTATIONS: '{"port":"15020"}'}}),
		['ISTIO_PROMETHEUS_ANNOTATIONS: status.app-metrics port 15020 belongs to the mesh…'],
	],
	[
		'two sockets have one path',
		() => load(bundle, {argv: {'relay-socket': '/s', 'control-socket': '/s'}}),
		['--control-socket: status.control-socket "/s" is also that of relay.socket'],
	],
	[
		'a wait is longer than its bound',
		() => load(bundle, {argv: {'control-plane-backoff-base': '2m'}}),
		['--control-plane-backoff-base: control-plane.backoff-base is longer than control-plane.backoff-max'],
	],
	[
		'certificates would overwrite what anchors trust',
		() => load(bundle, {argv: {'identity-output-dir': at}}),
		[`--identity-output-dir: identity.output-dir "${at}" is the directory of ${at}/root-cert.pem…`],
	],
	[
		'files are the source and are not named',
		() => load(bundle, {argv: {'identity-source': 'files', 'identity-cert': '/c'}}),
		['identity.key: is not set…', 'identity.root: is not set…'],
	],
];

for (const [what, run, expected] of faults)
	test(`config › says so when ${what}`, t => {
		const found = problemsOf(run);
		t.is(found.length, expected.length, found.join('\n'));
		for (const [index, text] of expected.entries())
			t.true(
				text.endsWith('…') ? found[index]!.startsWith(text.slice(0, -1)) : found[index] === text,
				`${found[index]}\n${text}`,
			);
	});

test('config › tells of every problem at once, and that no restart can help', t => {
	const run = () =>
		load(
			{...bundle, '/etc/onramp/onramp.yaml': 'log: {level: loud}\n', [`${at}/cluster.env`]: 'A=$x\nB=`x`\n'},
			{argv: {namespace: 'A B'}, env: {ONRAMP_NONSENSE: 's3cret'}},
		);
	t.is(problemsOf(run).length, 5);
	const error = t.throws(run);
	t.is(exitCodeOf(error), 78);
	t.false(error.message.includes('s3cret'));
});

test('config › never shows the value of a header', t => {
	const run = () =>
		load(bundle, {
			env: {
				CA_HEADER_AUTHORIZATION: 'Bearer s3cret\n',
				XDS_HEADER_X: 's3cret\u00e9',
				ONRAMP_CONTROL_PLANE_CA_HEADERS: 's3cret',
			},
		});
	const {message} = t.throws(run);
	t.true(
		message.includes('CA_HEADER_AUTHORIZATION') && message.includes('XDS_HEADER_X') && !message.includes('s3cret'),
	);
});

const warns: [string, Partial<LoadInput>, Files, RegExp][] = [
	[
		'an endpoint is an address without a server name',
		{argv: {'control-plane': '192.0.2.1:15012'}},
		{},
		/192\.0\.2\.1 is an address.*control-plane\.server-name/,
	],
	[
		"Istio's OUTPUT_CERTS is the directory of the trust anchor",
		{env: {OUTPUT_CERTS: './etc/onramp/bundle'}},
		{},
		/OUTPUT_CERTS: certificates are not written to \/etc\/onramp\/bundle/,
	],
	[
		'metadata is not text in YAML',
		{},
		{[`${at}/mesh.yaml`]: 'defaultConfig:\n  proxyMetadata:\n    ISTIO_META_X: 0x1F\n'},
		/mesh\.yaml:3: proxyMetadata\.ISTIO_META_X is not text in YAML; it is taken as "0x1F"/,
	],
	['there is no defaultConfig', {}, {[`${at}/mesh.yaml`]: '# nothing\n'}, /mesh\.yaml: has no "defaultConfig"/],
	[
		'metadata would be refused by istiod as text',
		{env: {ISTIO_META_LABELS: 'x'}},
		{},
		/ISTIO_META_LABELS: metadata LABELS is left out/,
	],
	['keepalive is faster than istiod bears', {argv: {'control-plane-keepalive': '5s'}}, {}, /each 15s/],
	['the CA endpoint has no TLS', {env: {CA_ADDR: 'istiod:15010'}}, {}, /CA_ADDR: a CA endpoint without TLS/],
];

for (const [what, input, files, expected] of warns)
	test(`config › warns when ${what}`, t => {
		const {warnings} = load({...bundle, ...files}, input);
		t.true(
			warnings.some(warning => expected.test(warning)),
			warnings.join('\n'),
		);
	});

test("config › reads Istio's variables as Istio means them", t => {
	const {config} = load(bundle, {
		env: {
			...{
				ISTIO_DELTA_XDS: 'false',
				ECC_SIGNATURE_ALGORITHM: 'ECDSA',
				ECC_CURVE: 'P384',
				SECRET_GRACE_PERIOD_RATIO: '0.2',
				SECRET_TTL: '1h30m',
			},
			...{
				CA_HEADER_X_A: '1',
				XDS_ROOT_CA: 'SYSTEM',
				CA_ROOT_CA: './r.pem',
				ISTIOD_SAN: 'istiod.x.svc',
				CA_ADDR: 'ca.x.svc:15012',
			},
			...{
				ISTIO_PROMETHEUS_ANNOTATIONS: '{"scrape":"true","targets":[{"port":"8080"},{"port":"9","path":"/m"}]}',
				OUTPUT_CERTS: './out',
			},
			...{WORKLOAD_IDENTITY_SOCKET_FILE: 'spire.sock', DISABLE_ENVOY: 'T', TRUST_DOMAIN: ''},
		},
	});
	t.like(config.relay, {protocol: 'sotw'});
	t.like(config.identity, {
		keyType: 'ecdsa-p384',
		rotateAtShare: 0.8,
		certificateLifetimeMs: 5_400_000,
		outputDir: '/out',
	});
	t.deepEqual(config.identity.source, {kind: 'sds', socketPath: '/var/run/secrets/workload-spiffe-uds/spire.sock'});
	t.like(config.controlPlane, {
		serverName: 'istiod.x.svc',
		trustAnchor: {kind: 'system'},
		caTrustAnchor: {kind: 'file', path: '/r.pem'},
		caHeaders: {x_a: '1'},
	});
	t.deepEqual(config.status.appMetrics, [
		{port: 8080, path: '/metrics'},
		{port: 9, path: '/m'},
	]);
	t.is(config.proxy.mode, 'off');
	t.is(config.workload.trustDomain, 'cluster.local');
});

test('config › takes mounted files as identity and trust anchor when Istio says so', t => {
	const env = {
		...{FILE_MOUNTED_CERTS: 'true', ISTIO_META_TLS_CLIENT_KEY: '/m/k', ISTIO_META_TLS_CLIENT_CERT_CHAIN: '/m/c'},
		ISTIO_META_TLS_CLIENT_ROOT_CERT: 'm/r',
	};
	const {config} = load(bundle, {env});
	t.deepEqual(config.identity.source, {kind: 'files', certPath: '/m/c', keyPath: '/m/k', rootPath: '/m/r'});
	t.deepEqual(config.controlPlane.trustAnchor, {kind: 'file', path: '/m/r'});
});

test('config › binds to IPv6 where there is nothing else', t => {
	const {config} = load(bundle, {
		host: {...host, interfaces: {eth0: [{address: '2001:db8::5', family: 'IPv6', internal: false} as never]}},
	});
	t.is(config.proxy.listenAddress, '::');
	t.is(config.status.address, '::');
});

test('config › keeps names of object members as plain data', t => {
	const {config} = load({
		...bundle,
		[`${at}/mesh.yaml`]:
			'defaultConfig:\n  __proto__: {polluted: 1}\n  proxyMetadata: {__proto__: x, ISTIO_META___proto__: y}\n',
	});
	t.is(({} as Record<string, unknown>)['polluted'], undefined);
	t.is((config.workload.proxyConfig as Record<string, unknown>)['polluted'], undefined);
});

test('config › reads a real directory, and a FIFO in it does not hang', t => {
	const directory = mkdtempSync(join(tmpdir(), 'onramp-config-'));
	t.teardown(() => rmSync(directory, {recursive: true}));
	mkdirSync(join(directory, 'b'));
	for (const [path, text] of Object.entries(bundleFiles('autoregister', join(directory, 'b'))))
		writeFileSync(path, text as string);
	symlinkSync('b', join(directory, 'link'));
	const run = () =>
		loadConfig({argv: {bundle: join(directory, 'link'), config: undefined}, env: {}, host, files: diskReader});
	t.is(run().config.workload.namespace, 'shop');
	rmSync(join(directory, 'b/hosts'));
	execFileSync('mkfifo', [join(directory, 'b/hosts')]);
	t.deepEqual(problemsOf(run), [`${join(directory, 'link/hosts')}: cannot be read: not a regular file`]);
});
