import {mkdir, readFile, rm, writeFile} from 'node:fs/promises';
import {createServer} from 'node:net';
import {join} from 'node:path';
import anyTest, {type TestFn} from 'ava';
import {examine, type Result} from '../../../src/cli/doctor/index.ts';
import {startSandbox} from '../../../src/sandbox/index.ts';
import {freePorts} from '../../../src/sandbox/local-workload.ts';
import {makeWorld, type World} from '../faults/world.ts';

const test = anyTest as TestFn<{world: World; flags: Record<string, string>}>;

test.beforeEach(async t => {
	const world = await makeWorld();
	const directory = world.directory;
	await writeFile(join(directory, 'onramp.yaml'), '');
	const [status, readiness, metrics, dns] = await freePorts(4);
	t.context = {
		world,
		flags: {
			config: join(directory, 'onramp.yaml'),
			bundle: await world.bundle(),
			envoy: world.envoyPath,
			'state-dir': join(directory, 'state'),
			'run-dir': join(directory, 'run'),
			address: '127.0.0.1',
			'status-port': String(status),
			'proxy-readiness-port': String(readiness),
			'proxy-metrics-port': String(metrics),
			'dns-port': String(dns),
			'dns-addresses': '127.0.0.1',
		},
	};
});
test.afterEach.always(t => t.context.world.end());

const bad = (results: readonly Result[]): string[] =>
	results
		.filter(({verdict}) => verdict === 'fail' || verdict === 'warn')
		// Of this machine, whatever it is.
		.filter(({check}) => check !== 'service' && !(check === 'clock'))
		.map(({check, verdict, message}) => `${verdict} ${check}: ${message}`);
const seen = (results: readonly Result[], check: string): string[] =>
	results.filter(each => each.check === check).map(({verdict, message}) => `${verdict} ${message}`);

test('doctor › before the first start finds nothing wrong, and the CA would sign', async t => {
	const {world, flags} = t.context;
	const results = await examine(flags, true, new Date());
	t.deepEqual(bad(results), []);
	t.regex(seen(results, 'CA')[0]!, /^ok signs for spiffe:\/\/cluster\.local\/ns\/faults\/sa\/vm-sa, until /);
	t.regex(seen(results, 'TLS')[0]!, /^ok .* is istiod\.istio-system\.svc, certificate until /);
	t.regex(seen(results, 'Envoy')[0]!, /version 1\.\d+\.\d+$/);
	t.regex(seen(results, 'token')[0]!, /^ok system:serviceaccount:faults:vm-sa, until /);
	t.deepEqual(seen(results, 'certificate'), ['skip none yet']);
	t.is(world.sandbox.counts.issuedByToken, 1);
	t.is((await examine(flags, false, new Date())).filter(({check}) => check === 'CA').length, 0);
	t.is(world.sandbox.counts.issuedByToken, 1, 'only asked when asked to');
});

test('doctor › beside a running agent tells what it says, and takes its ports for its own', async t => {
	const {world} = t.context;
	const workload = await world.workload({bundle: t.context.flags['bundle']!});
	workload.start();
	await workload.untilReady();
	const {code, stdout} = await world.cli(['doctor', ...workload.flags]);
	t.is(code, 0, stdout);
	t.regex(stdout, /^ok {4}agent +ready, pid \d+/m);
	t.regex(stdout, /^ok {4}certificate +spiffe:\/\/cluster\.local\/ns\/faults\/sa\/vm-sa until /m);
	t.regex(stdout, /^skip {2}ports +the running agent has them/m);
	const json = await world.cli(['doctor', '--json', ...workload.flags]);
	t.like(JSON.parse(json.stdout), {failed: 0});

	// The token is past its use, and needed no more.
	await writeFile(join(t.context.flags['bundle']!, 'istio-token'), world.token({expired: true}));
	const later = await world.cli(['doctor', ...workload.flags]);
	t.is(later.code, 0);
	t.regex(later.stdout, /^warn {2}token +\S+istio-token: the token expired/m);
});

test('doctor › of an agent that is not ready shows each closed gate', async t => {
	const {world, flags} = t.context;
	await writeFile(join(flags['bundle']!, 'istio-token'), '');
	const workload = await world.workload({bundle: flags['bundle']!});
	workload.start();
	await workload.until('locked out', ({parts}) => (parts['identity'] as {state?: string})?.state === 'locked-out');
	const {code, stdout} = await world.cli(['doctor', ...workload.flags]);
	t.is(code, 1);
	t.regex(stdout, /^fail {2}agent +gate identity: locked out/m);
	t.regex(stdout, /^fail {2}token +\S+istio-token: the token is empty/m);
});

interface Fault {
	readonly title: string;
	readonly flags?: Readonly<Record<string, string>>;
	readonly make?: (world: World, flags: Record<string, string>) => Promise<unknown>;
	readonly now?: Date;
	/** All that is wrong then. */
	readonly says: readonly RegExp[];
}

const bundleFile = (flags: Readonly<Record<string, string>>, name: string): string => join(flags['bundle']!, name);

const faults: readonly Fault[] = [
	{
		title: 'a name that nobody knows',
		flags: {'control-plane': 'istiod.invalid:15012'},
		says: [/^fail name look-up: look up control plane istiod\.invalid:15012: no address found$/],
	},
	{
		title: 'a control plane that is away',
		make: world => world.sandbox.stop(),
		says: [/^fail connection: 127\.0\.0\.1:\d+: ECONNREFUSED$/],
	},
	{
		title: 'a root certificate of another mesh',
		make: async (_, flags) => {
			const other = await startSandbox();
			await other.stop();
			await writeFile(bundleFile(flags, 'root-cert.pem'), other.rootPem());
		},
		says: [/^fail TLS: \S+: its certificate is not signed by our roots \(\w+\)$/],
	},
	{
		title: 'a server name that is in no certificate',
		flags: {'server-name': 'istiod-canary.istio-system.svc'},
		says: [/^fail TLS: \S+: its certificate is not for istiod-canary\.istio-system\.svc, but for DNS:/],
	},
	{
		title: 'a clock that is years behind',
		now: new Date('2001-01-01'),
		says: [/^fail TLS: \S+: its certificate is valid from \S+ to \S+, here it is 2001-01-01T00:00:00\.000Z$/],
	},
	{
		title: 'a token that has expired',
		make: (world, flags) => writeFile(bundleFile(flags, 'istio-token'), world.token({expired: true})),
		says: [/^fail token: \S+istio-token: the token expired at /],
	},
	{
		title: 'a token for another audience',
		make: (world, flags) => writeFile(bundleFile(flags, 'istio-token'), world.token({audience: 'vault'})),
		says: [/^warn token: \S+istio-token: the audience of the token is vault, expected is istio-ca$/],
	},
	{
		title: 'no token',
		make: (_, flags) => rm(bundleFile(flags, 'istio-token')),
		says: [/^fail token: \S+istio-token: there is no token$/],
	},
	{
		title: 'no Envoy',
		flags: {envoy: '/no/envoy'},
		says: [/^fail Envoy: start envoy: there is no \/no\/envoy$/],
	},
	{
		title: 'an Envoy that is too old',
		make: async (world, flags) => {
			const path = join(world.directory, 'old-envoy');
			await writeFile(path, '#!/bin/sh\necho "envoy  version: abc/1.20.1/Clean/RELEASE/BoringSSL"\n', {mode: 0o755});
			flags['envoy'] = path;
		},
		says: [/^fail Envoy: start envoy: \S+old-envoy is version 1\.20\.1$/],
	},
	{
		title: 'a state directory that others may enter',
		make: (_, flags) => mkdir(flags['state-dir']!, {mode: 0o755}),
		says: [/^warn state directory: \S+state has mode 0755, and holds private keys$/],
	},
	{
		title: 'a bundle that is cut between two lines',
		make: async (_, flags) => {
			const path = bundleFile(flags, 'cluster.env');
			await writeFile(path, (await readFile(path, 'utf8')).replace(/TRUST_DOMAIN=.*\n$/, ''));
		},
		says: [/^warn configuration: .*cluster\.env: lacks what istioctl writes into every bundle: TRUST_DOMAIN/],
	},
	{
		title: 'a configuration that cannot be read',
		make: (_, flags) => writeFile(flags['config']!, 'no-such: 1\n'),
		says: [/^fail configuration: \S+onramp\.yaml:1: unknown setting "no-such"/],
	},
];

for (const {title, flags: more, make, now, says} of faults) {
	test(`doctor › ${title} is named, with what to do, and nothing else is`, async t => {
		const {world} = t.context;
		const flags = {...t.context.flags, ...more};
		await make?.(world, flags);
		const results = await examine(flags, false, now ?? new Date());
		const found = bad(results);
		t.is(found.length, says.length, found.join('\n'));
		for (const [index, pattern] of says.entries()) t.regex(found[index]!, pattern);
		for (const {verdict, remedy, message} of results)
			if (verdict === 'fail' || verdict === 'warn') t.truthy(remedy, message);
	});
}

test('doctor › a port that is taken is named with who has it', async t => {
	const {flags} = t.context;
	const server = createServer();
	await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve));
	t.teardown(() => server.close());
	const {port} = server.address() as {port: number};
	const found = bad(await examine({...flags, 'proxy-metrics-port': String(port)}, false, new Date()));
	t.is(found.length, 1);
	t.regex(
		found[0]!,
		new RegExp(`^fail ports: port ${port} for proxy\\.metrics-port is taken by .*\\(pid ${process.pid}\\)$`),
	);
});

test('doctor › a control plane that takes connections and says nothing is given up in bounded time', async t => {
	const server = createServer(() => {});
	await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve));
	t.teardown(() => server.close());
	const {port} = server.address() as {port: number};
	const started = performance.now();
	const results = await examine({...t.context.flags, 'control-plane': `127.0.0.1:${port}`}, false, new Date());
	t.true(performance.now() - started < 15_000);
	t.regex(seen(results, 'TLS')[0]!, /^fail 127\.0\.0\.1:\d+: no TLS handshake within 5 s$/);
});

test('doctor › the CA’s refusal is told as it is', async t => {
	const {world, flags} = t.context;
	await writeFile(bundleFile(flags, 'istio-token'), world.token({audience: 'vault'}));
	const results = await examine(flags, true, new Date());
	t.regex(seen(results, 'CA')[0]!, /^fail .*accepts none of our credentials/);
});

test('doctor › shows neither token nor key', async t => {
	const {world, flags} = t.context;
	const {stdout, stderr} = await world.cli([
		...['doctor', '--ask-ca', '--json'],
		...Object.entries(flags).flatMap(([name, value]) => [`--${name}`, value]),
	]);
	const token = await readFile(bundleFile(flags, 'istio-token'), 'utf8');
	t.true(stdout.includes('"check": "CA"'), stderr);
	for (const secret of [token.slice(-30), 'PRIVATE KEY']) t.false((stdout + stderr).includes(secret));
});
