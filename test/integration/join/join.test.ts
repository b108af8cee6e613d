import {execFile} from 'node:child_process';
import {readdirSync, readFileSync, statSync} from 'node:fs';
import {createServer} from 'node:http';
import {join} from 'node:path';
import {promisify} from 'node:util';
import test from 'ava';
import {freePorts, type LocalWorkload} from '../../../src/sandbox/local-workload.ts';
import type {StatusReport} from '../../../src/status/index.ts';
import {ask} from '../../support/load.ts';
import {fetchServedSerial, partsOf, startMesh, until} from '../../support/mesh.ts';
import {parseExposition} from './exposition.ts';

const get = async (port: number, path: string) => {
	const answer = await fetch(`http://127.0.0.1:${port}${path}`, {headers: {connection: 'close'}});
	return {status: answer.status, type: answer.headers.get('content-type'), text: await answer.text()};
};

/** `onramp status --json` as a person runs it. */
async function runStatus({options, flags}: LocalWorkload): Promise<{code: number; report: StatusReport}> {
	const given = flags.slice(flags.indexOf('--config'));
	const bundle = join(options.directory, 'bundle');
	const args = [options.agentPath, 'status', '--json', '--bundle', bundle, ...given];
	const {stdout} = await promisify(execFile)(process.execPath, args, {env: {PATH: process.env['PATH'] ?? ''}});
	return {code: 0, report: JSON.parse(stdout) as StatusReport};
}

test('join › a token buys a certificate, a WorkloadEntry and mutual TLS both ways; Envoy refuses nothing', async t => {
	const mesh = await startMesh(t, {command: 'join'});
	const {sandbox} = mesh;
	const vm = mesh.workload('vm');

	const outbound = await ask({port: mesh.port('vm', 'cluster')});
	t.is(outbound.app, 'cluster');
	t.deepEqual([outbound.callerId, outbound.ownId], [mesh.idOf('vm'), mesh.idOf('cluster')]);
	const inbound = await ask({port: mesh.port('cluster', 'vm')});
	t.is(inbound.app, 'vm');
	t.deepEqual([inbound.callerId, inbound.ownId], [mesh.idOf('cluster'), mesh.idOf('vm')]);
	t.is((await ask({port: mesh.port('vm', 'cluster', 'tcp')})).app, 'cluster');
	t.deepEqual(
		sandbox.acks.all.filter(({error}) => error),
		[],
	);

	const {address, port} = mesh.inbound('vm');
	const entry = sandbox.workloadEntries().find(({name}) => name === `vm-${address}`)!;
	t.is(entry.namespace, 'mesh');
	t.deepEqual(entry.spec, {
		address,
		serviceAccount: 'vm-sa',
		ports: {http: port, tcp: mesh.inbound('vm', 'tcp').port},
		labels: {
			app: 'vm',
			'service.istio.io/canonical-name': 'vm',
			'service.istio.io/canonical-revision': 'latest',
		},
	});
	t.is(entry.annotations['istio.io/autoRegistrationGroup'], 'vm');
	t.is(entry.annotations['istio.io/disconnectedAt'], undefined);
	t.is(sandbox.workloadEntries().length, 2);
	t.is(sandbox.counts.issuedByToken, 2, 'one request for each is enough');

	const {code, report} = await runStatus(vm);
	t.is(code, 0);
	t.true(report.ready);
	t.deepEqual(
		report.gates.map(({name, open}) => [name, open]),
		['identity', 'configuration', 'proxy', 'dns', 'registration'].map(name => [name, true]),
	);
	const {identity, relay, proxy, registration} = partsOf(report);
	t.is(identity.state, 'serving');
	t.is(identity.spiffeId, mesh.idOf('vm'));
	t.is(identity.origin, 'control-plane');
	t.is(identity.serial, await fetchServedSerial(mesh.inbound('vm')), 'what status says is what is on the wire');
	t.is(relay.upstream.state, 'connected');
	t.is(relay.upstream.endpoint, `istiod.istio-system.svc:${sandbox.port}`);
	t.deepEqual(relay.rejections, []);
	const removals = new Map(relay.removals.map(({name, lost}) => [name, lost]));
	t.deepEqual([...removals.keys()].sort(), [
		'istio-peer-exchange',
		'istio.alpn',
		'istio.metadata_exchange',
		'istio.stats',
	]);
	t.is(removals.get('istio.alpn'), 'nothing: a stock filter sets the protocol instead');
	for (const [name, lost] of removals) t.regex(lost, /^\w.{10,}$/, name);
	t.deepEqual([proxy.state, proxy.version, proxy.adopted, proxy.restarts], ['running', '1.40.0', false, 0]);
	t.deepEqual([registration.state, registration.entry], ['registered', `mesh/vm-${address}`]);

	const owners = new Set<number>();
	const walk = (path: string) => {
		const {mode, uid} = statSync(path);
		owners.add(uid);
		t.is(mode & 0o077, 0, `${path} is ${(mode & 0o777).toString(8)}`);
		if (statSync(path).isDirectory()) for (const name of readdirSync(path)) walk(join(path, name));
	};
	walk(join(vm.stateDir, 'identity'));
	t.is(owners.size, 1);
	const everything = [
		vm.log(),
		JSON.stringify(report),
		readFileSync(join(vm.stateDir, 'log', 'envoy.log'), 'utf8'),
	].join();
	const token = readFileSync(join(vm.options.bundle, 'istio-token'), 'utf8').trim();
	t.false(everything.includes(token), 'the token is told to nobody');
	t.false(everything.includes('PRIVATE KEY'));
});

test('join › readiness and metrics are where Istio’s agent has them, merged and valid', async t => {
	let isAppBroken = false;
	const app = createServer((_request, response) => {
		response.writeHead(isAppBroken ? 500 : 200, {'content-type': 'text/plain; version=0.0.4'});
		response.end('# TYPE app_orders_total counter\napp_orders_total{kind="a\\"b"} 3\n');
	});
	await new Promise<void>(resolve => app.listen(0, '127.0.0.1', resolve));
	t.teardown(() => app.close());
	const {port: appPort} = app.address() as {port: number};
	const mesh = await startMesh(t, {
		flagsOf: name => (name === 'vm' ? ['--status-app-metrics', `${appPort}/metrics`] : []),
	});
	const vm = mesh.workload('vm');
	await ask({port: mesh.port('vm', 'cluster')});

	t.deepEqual(await get(vm.ports.status, '/healthz/ready').then(({status, text}) => [status, text]), [200, 'ready\n']);
	t.is((await get(vm.ports.status, '/livez')).status, 200);
	t.is((await get(vm.ports.status, '/readyz/identity')).status, 200);
	t.is((await get(vm.ports.readiness, '/healthz/ready')).status, 200);
	t.is((await get(vm.ports.status, '/status')).status, 404, 'the network learns no more than that');

	const page = await get(vm.ports.status, '/stats/prometheus');
	t.is(page.status, 200);
	t.regex(page.type!, /^text\/plain; *version=0\.0\.4/);
	const families = parseExposition(page.text);
	const sampleOf = (series: string) => families.get(series.replace(/\{.*/, ''))?.series.get(series);
	t.is(sampleOf('onramp_relay_upstream_connected'), 1);
	t.is(sampleOf('onramp_certificate_rotations_total{result="success"}'), 1);
	const expiryMs = sampleOf('onramp_certificate_expiry_timestamp_seconds')! * 1000;
	t.is(new Date(expiryMs).toISOString(), partsOf(await vm.status()).identity.notAfter);
	t.is(sampleOf('app_orders_total{kind="a\\"b"}'), 3);
	t.is(families.get('envoy_server_live')?.series.size, 1);
	t.true([...families.keys()].some(name => name.startsWith('envoy_cluster_upstream_rq')));

	isAppBroken = true;
	const withoutApp = parseExposition((await get(vm.ports.status, '/stats/prometheus')).text);
	t.is(withoutApp.get('app_orders_total'), undefined, 'an application that fails is left out and spoils nothing');
	t.true(withoutApp.has('envoy_server_live'));
	t.is(
		withoutApp.get('onramp_scrape_failures_total')?.series.get('onramp_scrape_failures_total{type="application"}'),
		1,
	);

	const envoys = parseExposition((await get(vm.ports.metrics, '/stats/prometheus')).text);
	t.true(envoys.has('envoy_server_live'));
});

test('join › with state of the world on both sides: traffic both ways, a change arrives, and nothing is refused', async t => {
	const mesh = await startMesh(t, {flags: ['--relay-protocol', 'sotw', '--proxy-ads-protocol', 'sotw']});
	const {sandbox} = mesh;
	const vm = mesh.workload('vm');
	t.deepEqual(
		sandbox.connections().map(({protocol}) => protocol),
		['sotw', 'sotw'],
	);
	const bootstrap = readFileSync(join(vm.runDir, 'envoy', 'bootstrap.json'), 'utf8');
	t.true(bootstrap.includes('"GRPC"') && !bootstrap.includes('DELTA_GRPC'));
	for (const [from, to] of [
		['vm', 'cluster'],
		['cluster', 'vm'],
	] as const) {
		const answer = await ask({port: mesh.port(from, to)});
		t.deepEqual([answer.app, answer.callerId, answer.ownId], [to, mesh.idOf(from), mesh.idOf(to)]);
		t.is((await ask({port: mesh.port(from, to, 'tcp')})).app, to);
	}

	const [port] = (await freePorts(1)) as [number];
	const {port: targetPort} = mesh.inbound('cluster');
	const host = 'new.mesh.svc.cluster.local';
	const service = {
		host,
		namespace: 'mesh',
		port: 80,
		targetPort,
		protocol: 'http' as const,
		selector: {app: 'cluster'},
	};
	sandbox.addService({...service, bindPort: {vm: port}});
	t.is((await until('the new service', () => ask({port}))).app, 'cluster');
	sandbox.removeService(host);
	await until('its end', () =>
		ask({port}).then(
			() => false,
			() => true,
		),
	);
	t.is((await ask({port: mesh.port('vm', 'cluster')})).app, 'cluster', 'the others are as they were');
	t.deepEqual(
		sandbox.acks.all.filter(({error}) => error),
		[],
	);
	t.deepEqual(partsOf(await vm.status()).relay.rejections, []);
});

test('join › a stop is told until its end: alive, and not ready', async t => {
	const mesh = await startMesh(t, {workloads: {vm: 'vm'}, flags: ['--proxy-termination-drain', '2s']});
	const vm = mesh.workload('vm');
	const port = vm.ports.status;
	const look = async () => {
		const [live, ready] = [await get(port, '/livez'), await get(port, '/healthz/ready')];
		return [live.status, ready.status, ready.text].join(' ');
	};
	t.is(await look(), '200 200 ready\n');
	vm.signal('SIGTERM');
	await until('the stop', async () => (await look()) === '200 503 stopping\n');
	t.true((await vm.status()).stopping);
	const fromMs = performance.now();
	let [endedMs, heardMs] = [0, 0];
	const ended = vm.exit!.then(code => {
		endedMs = performance.now();
		return code;
	});
	for (;;) {
		const seen = await look().catch(() => undefined);
		// Nobody answers any more: that is the end of the process.
		if (seen === undefined) break;
		t.is(seen, '200 503 stopping\n');
		heardMs = performance.now();
	}
	t.is(await ended, 0);
	t.true(heardMs - fromMs > 1500, `heard for ${heardMs - fromMs} ms`);
	t.is(vm.envoyPid(), undefined);
	t.log(`last heard ${Math.round(endedMs - heardMs)} ms before the end`);
	t.true(endedMs - heardMs < 1000);
});
