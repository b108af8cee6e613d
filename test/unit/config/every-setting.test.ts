// Each setting, given in each way, arrives in Config, with its origin.
import test from 'ava';
import {type LoadInput, loadConfig, type Setting, settings} from '../../../src/config/index.ts';
import {bundleFiles, type Files, host, memoryReader} from './sources.ts';

const sources = ['flag', 'environment', 'file'] as const;
type Source = (typeof sources)[number];
/** Values as they are written, one a source; with two that can be chosen from, the first comes again. */
type Samples = readonly string[];

const own = '/etc/onramp/onramp.yaml';
/** The bundle's own values are in the way of none: all three sources count more. */
const files: Files = {...bundleFiles('autoregister'), ...bundleFiles('plain', '/srv/plain')};

const durations: Samples = ['7s', '8s', '9s'];
const ofType: Readonly<Record<string, Samples>> = {
	path: ['/srv/a', '/srv/b', '/srv/c'],
	duration: durations,
	port: ['16001', '16002', '16003'],
	ports: ['16001', '16002', '16003,16004'],
	integer: ['21', '22', '23'],
	share: ['0.31', '0.32', '0.33'],
	bytes: ['1MiB', '2MiB', '3MiB'],
	mode: ['0640', '0644', '0660'],
	name: ['one', 'two', 'three'],
	string: ['one', 'two', 'three'],
	list: ['one', 'two', 'three,four'],
	owners: ['one', 'two', 'three,four'],
	units: ['a.service', 'b.service', 'c.service'],
	interfaces: ['eth1', 'eth2', 'eth3'],
	address: ['192.0.2.11', '192.0.2.12', '192.0.2.13'],
	network: ['127.0.0.0/8', '127.1.0.0/16', '127.2.0.0/16'],
	networks: ['10.0.0.0/8', '10.1.0.0/16', '10.2.0.0/16'],
	endpoints: ['a.example:1', 'b.example:2', 'c.example:3'],
	anchor: ['/srv/a.pem', '/srv/b.pem', 'SYSTEM'],
	url: ['https://a.example', 'https://b.example', 'https://c.example'],
	rules: ['interface:eth1', 'cidr:10.0.0.0/8', 'metadata'],
	pairs: ['a=1', 'a=2', 'a=3'],
	headers: ['a=1', 'a=2', 'a=3'],
	probes: ['tcp://a.example:1', 'tcp://b.example:2', 'dns:c.example'],
	command: ['/bin/a', '/bin/b', '/bin/c'],
};

const asProbe = (name: string) => `{"${name}":{"tcpSocket":{"port":80}}}`;
const ofKey: Readonly<Record<string, Samples>> = {
	'workload.cloud-endpoint': ['http://169.254.169.1', 'http://169.254.169.2', 'http://169.254.169.3'],
	'workload.namespace': ['one', 'two', 'three'],
	'control-plane.hosts': ['a=192.0.2.1', 'a=192.0.2.2', 'a=192.0.2.3'],
	'dns.addresses': ['127.0.0.1', '127.0.0.2', '127.0.0.3'],
	'dns.upstreams': ['192.0.2.1', '192.0.2.2:5353', '[2001:db8::1]:53'],
	'status.app-metrics': ['8080/metrics', '8081/a', '8082/b'],
	'health.probes': [asProbe('a'), asProbe('b'), asProbe('c')],
	'proxy.drain-ceiling': ['26s', '27s', '28s'],
	'identity.certificate-lifetime': ['7h', '8h', '9h'],
};

/** Settings that count only beside others, by the beginning of their key; as flags. */
const beside: readonly [key: RegExp, flags: Readonly<Record<string, string>>][] = [
	[/^identity\.(cert|key|root)$/, {'identity-source': 'files', ...filesOf('cert', 'key', 'root')}],
	[/^identity\.socket$/, {'identity-source': 'sds', 'identity-socket': '/x'}],
	[/^identity\.source$/, {...filesOf('cert', 'key', 'root', 'socket')}],
	[
		/^registration\.(mode|entry|check|kubernetes\.kubeconfig)$/,
		{'registration-mode': 'direct', 'registration-kubernetes-kubeconfig': '/x'},
	],
	[
		/^registration\.kubernetes\.(server|ca|token)$/,
		{
			'registration-mode': 'direct',
			'registration-kubernetes-server': 'https://x.example',
			...{'registration-kubernetes-ca': '/x', 'registration-kubernetes-token': '/x'},
		},
	],
	[/^proxy\.restart-backoff-base$/, {'proxy-restart-backoff-max': '1m'}],
	[/^capture\.enabled$/, {capture: 'false'}],
];

function filesOf(...names: readonly string[]): Readonly<Record<string, string>> {
	return Object.fromEntries(names.map(name => [`identity-${name}`, '/x']));
}

function samplesOf({key, type, choices, default: fallback}: Setting): Samples {
	const others = choices?.filter(choice => choice !== fallback);
	const given = ofKey[key] ?? others ?? (type === 'boolean' ? [String(fallback !== 'true')] : ofType[type]);
	if (!given) throw new Error(`no sample of ${key} (${type})`);
	return given;
}

/** `a.b: value` as YAML. */
const asYaml = (key: string, value: string): string =>
	`${key
		.split('.')
		.map((part, i) => `${'  '.repeat(i)}${part}:`)
		.join('\n')} ${value.startsWith('{') ? value : JSON.stringify(value)}\n`;

function loadWith(setting: Setting, source: Source | undefined, value: string) {
	const {key, flag, env} = setting;
	const {[flag]: _, ...argv} = Object.assign(
		{},
		...beside.filter(([keys]) => keys.test(key)).map(([, flags]) => flags),
	);
	const input: LoadInput = {
		argv: source === 'flag' ? {...argv, [flag]: value} : argv,
		env: source === 'environment' ? {[env]: value} : {},
		host,
		files: memoryReader(source === 'file' ? {...files, [own]: asYaml(key, value)} : files),
	};
	return loadConfig(input);
}

const at = (value: unknown, path: string): unknown =>
	path.split('.').reduce<unknown>((node, name) => (node as Record<string, unknown> | undefined)?.[name], value);

/** Where they are is decided before there is a Config. */
const isPlace = ({key}: Setting): boolean => key === 'config' || key === 'bundle';

for (const setting of settings.filter(each => !isPlace(each)))
	test(`setting › ${setting.key} arrives by flag, variable and file, and its origin says which`, t => {
		const {leaf, flag, env, key} = setting;
		const samples = samplesOf(setting);
		const seen = sources.map((source, i) => {
			const {config, origins} = loadWith(setting, source, samples[i % samples.length]!);
			const line = key.split('.').length;
			const place = {flag: `--${flag}`, environment: env, file: `${own}:${line}`}[source];
			// Of maps each entry has its own.
			const origin = [leaf, `${leaf}.kind`, `${leaf}.a`].map(path => origins.get(path)).find(each => each);
			t.deepEqual(origin, {kind: source, place}, `origin of ${leaf} by ${source}`);
			return JSON.stringify(at(config, leaf));
		});
		t.is(new Set(seen).size, Math.min(samples.length, sources.length), `values of ${leaf}: ${seen.join(' ')}`);
		if (samples.length === 1)
			t.not(JSON.stringify(at(loadWith(setting, 'flag', setting.default!).config, leaf)), seen[0], 'the other value');
	});

test('setting › the bundle is found by flag, variable and file, the file by flag and variable', t => {
	const isPlain = (input: Partial<LoadInput>, yaml = '') =>
		loadConfig({
			argv: {},
			env: {},
			host,
			files: memoryReader({...files, '/srv/own.yaml': 'bundle: /srv/plain\n', [own]: yaml}),
			...input,
		}).config.workload.namespace === 'bank';
	t.false(isPlain({}));
	t.true(isPlain({argv: {bundle: '/srv/plain'}}));
	t.true(isPlain({env: {ONRAMP_BUNDLE: '/srv/plain'}}));
	t.true(isPlain({}, 'bundle: /srv/plain\n'));
	t.true(isPlain({argv: {config: '/srv/own.yaml'}}));
	t.true(isPlain({env: {ONRAMP_CONFIG: '/srv/own.yaml'}}));
});

test('setting › each has a key, a flag and a variable of its own', t => {
	for (const names of [settings.map(({flag}) => flag), settings.map(({env}) => env), settings.map(({key}) => key)])
		t.is(new Set(names).size, settings.length);
	for (const {env, flag} of settings) t.true(/^ONRAMP_[A-Z0-9_]+$/.test(env) && /^[a-z0-9-]+$/.test(flag), env);
});
