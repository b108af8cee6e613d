import {readFileSync} from 'node:fs';
import {gunzipSync} from 'node:zlib';
import test, {type ExecutionContext} from 'ava';
import {typeUrl} from '../../../src/proto/types.ts';
import type {Message} from '../../../src/sandbox/envoy-types.ts';
import {type Sandbox, type SandboxOptions, startSandbox} from '../../../src/sandbox/index.ts';
import {type AdsStream, openAds, vmNode} from './client.ts';

/** Type URL → resource name → resource. */
type Config = Record<string, Record<string, Message>>;

/**
 * What a real istiod (86c9f01fd735, reporting 1.31.0) sent to a VM for the services below, decoded: `permissive` and
 * `strict` in default settings, `plain` without its own Envoy extensions. See it with zcat.
 */
const istiod = JSON.parse(gunzipSync(readFileSync(new URL('istiod.json.gz', import.meta.url))).toString()) as Record<
	string,
	Config
>;

const own = {host: 'own.ns1.svc.cluster.local', namespace: 'ns1', address: '240.0.0.9', selector: {app: 'vm'}};
const other = {host: 'other.ns1.svc.cluster.local', namespace: 'ns1', address: '240.0.0.10'};
const ofOther = (port: number) => [{address: '127.0.0.1', port, spiffeId: 'spiffe://cluster.local/ns/ns1/sa/other-sa'}];

async function start(t: ExecutionContext, options: SandboxOptions): Promise<Sandbox> {
	const sandbox = await startSandbox({debounceMs: 1, ...options});
	t.teardown(() => sandbox.stop());
	sandbox.addWorkloadGroup({name: 'vm', namespace: 'ns1', serviceAccount: 'vm-sa', labels: {app: 'vm'}});
	sandbox.addService({...own, port: 80, protocol: 'http', targetPort: 8080});
	sandbox.addService({...own, port: 81, protocol: 'http2', targetPort: 8081});
	sandbox.addService({...own, port: 82, protocol: 'grpc', targetPort: 8082});
	sandbox.addService({...own, port: 90, protocol: 'tcp', targetPort: 8090});
	sandbox.addService({...other, port: 80, protocol: 'http', targetPort: 9080, endpoints: ofOther(9080)});
	sandbox.addService({...other, port: 7070, protocol: 'grpc', targetPort: 9082, endpoints: ofOther(9082)});
	sandbox.addService({...other, port: 9000, protocol: 'tcp', targetPort: 9090, endpoints: ofOther(9090)});
	return sandbox;
}

function connect(t: ExecutionContext, sandbox: Sandbox, name = 'vm1', metadata: Record<string, unknown> = {}) {
	const token = sandbox.issueToken({namespace: 'ns1', serviceAccount: 'vm-sa'});
	const stream = openAds({address: sandbox.address, rootPem: sandbox.rootPem(), token}, 'delta');
	t.teardown(() => stream.close());
	const node = vmNode({name, namespace: 'ns1', serviceAccount: 'vm-sa', group: 'vm', metadata});
	stream.send({node, type_url: typeUrl.cluster});
	return stream;
}

/** A node whose entry is there already, so that the first answers have its own services. */
async function reconnect(t: ExecutionContext, sandbox: Sandbox, metadata: Record<string, unknown> = {}) {
	await fetchType(connect(t, sandbox, 'vm1', metadata), typeUrl.cluster);
	return connect(t, sandbox, 'vm1', metadata);
}

async function fetchType(
	stream: AdsStream,
	type: string,
	names: readonly string[] = [],
): Promise<Record<string, Message>> {
	if (type !== typeUrl.cluster) stream.send({type_url: type, resource_names_subscribe: names});
	for (;;) {
		const response = await stream.next();
		if (response['type_url'] !== type) continue;
		const resources = response['resources'] as Message[];
		return Object.fromEntries(resources.map(({name, resource}) => [String(name ?? ''), resource as Message]));
	}
}

for (const [kind, options] of Object.entries({
	permissive: {},
	strict: {mtls: 'strict'},
	plain: {istioExtensions: false},
} satisfies Record<string, SandboxOptions>)) {
	test(`config › ${kind}: every resource is what istiod sends for the same services`, async t => {
		const stream = await reconnect(t, await start(t, options));
		for (const [type, resources] of Object.entries(istiod[kind]!)) {
			const names = type === typeUrl.endpoint || type === typeUrl.route ? Object.keys(resources) : [];
			const mine = await fetchType(stream, type, names);
			for (const [name, resource] of Object.entries(resources))
				t.deepEqual(mine[name], resource, `${kind} ${type} ${name}`);
		}
	});
}

test('config › names no Istio-only extension when told so', async t => {
	const stream = connect(t, await start(t, {istioExtensions: false}));
	const all = [
		await fetchType(stream, typeUrl.cluster),
		await fetchType(stream, typeUrl.listener),
		await fetchType(stream, typeUrl.route, ['80']),
	];
	const text = JSON.stringify(all);
	t.regex(text, /envoy\.filters\.http\.router/);
	t.notRegex(text, /"name":"istio\.|"istio-peer-exchange","istio"\],"tls_cert/);
	t.notRegex(text, /stats\.PluginConfig|TypedStruct/);
});

test('config › virtual listeners bind where the node is told to, by its name', async t => {
	const sandbox = await start(t, {ports: {vm1: {outbound: 25001, inbound: 25006}}});
	const portsOf = (listeners: Record<string, Message>) =>
		['virtualOutbound', 'virtualInbound'].map(name => JSON.stringify(listeners[name]).match(/"port_value":(\d+)/)![1]);
	t.deepEqual(portsOf(await fetchType(connect(t, sandbox), typeUrl.listener)), ['25001', '25006']);
	t.deepEqual(portsOf(await fetchType(connect(t, sandbox, 'vm2'), typeUrl.listener)), ['15001', '15006']);
});

test('config › without interception inbound ports are bound on the workload address and lead to localhost', async t => {
	const sandbox = await start(t, {ports: {vm1: {ingress: {8080: 18080}}}});
	sandbox.removeService(own.host, 81);
	sandbox.removeService(own.host, 82);
	const stream = await reconnect(t, sandbox, {INTERCEPTION_MODE: 'NONE'});
	const clusters = await fetchType(stream, typeUrl.cluster);
	t.like(clusters['inbound|8080||'], {type: 'STATIC'});
	t.regex(JSON.stringify(clusters['inbound|8080||']), /"address":"127\.0\.0\.1","port_value":8080/);
	t.false('InboundPassthroughCluster' in clusters);
	const listeners = await fetchType(stream, typeUrl.listener);
	t.deepEqual(
		Object.keys(listeners).filter(name => name.startsWith('10.0.0.5') || name.startsWith('virtual')),
		['10.0.0.5_18080', '10.0.0.5_8090'],
	);
	t.is(listeners['10.0.0.5_8090']!['bind_to_port'], undefined);
});

test('config › remapped inbound ports are what the others connect to', async t => {
	const sandbox = await start(t, {ports: {vm1: {interception: 'none', ingress: {8080: 18080}}}});
	const name = `outbound|80||${own.host}`;
	const assignment = await fetchType(connect(t, sandbox), typeUrl.endpoint, [name]);
	t.regex(JSON.stringify(assignment[name]), /"address":"10\.0\.0\.5","port_value":18080/);
});

test('config › a service with a bind port gets a listener and a route of its own on the nodes named', async t => {
	const sandbox = await start(t, {});
	const port = {...other, port: 8000, protocol: 'http', endpoints: ofOther(9080)} as const;
	sandbox.addService({...port, bindPort: {vm1: 20080}});
	const stream = connect(t, sandbox);
	const listener = (await fetchType(stream, typeUrl.listener))['127.0.0.1_20080']!;
	t.is(listener['bind_to_port'], undefined);
	const route = `${other.host}:8000`;
	t.true(JSON.stringify(listener).includes(`"route_config_name":"${route}"`));
	const routes = await fetchType(stream, typeUrl.route, [route]);
	t.deepEqual((routes[route]!['virtual_hosts'] as Message[])[0]!['domains'], ['*']);
	t.false('127.0.0.1_20080' in (await fetchType(connect(t, sandbox, 'vm2'), typeUrl.listener)));
});

test('config › thousands of services are one cluster each, and one listener and one route together', async t => {
	const sandbox = await start(t, {});
	const names = ['own', 'other'].map(host => `${host}.ns1.svc.cluster.local`);
	for (const host of names) sandbox.removeService(host);
	sandbox.addServices(1200);
	const stream = connect(t, sandbox);
	t.is(Object.keys(await fetchType(stream, typeUrl.cluster)).length, 1200 + 3);
	t.deepEqual(Object.keys(await fetchType(stream, typeUrl.listener)), [
		'0.0.0.0_80',
		'virtualOutbound',
		'virtualInbound',
	]);
	const routes = await fetchType(stream, typeUrl.route, ['80']);
	t.is((routes['80']!['virtual_hosts'] as Message[]).length, 1200 + 1);
	const addresses = (routes['80']!['virtual_hosts'] as Message[]).map(host => (host['domains'] as string[]).at(-1));
	t.is(new Set(addresses).size, 1201);
	sandbox.addServices(10);
	const next = await stream.next();
	t.is((next['removed_resources'] as string[]).length, 1190);
});

test('config › services of a new entry come with the push that follows it, and with the first answers of later streams', async t => {
	const sandbox = await start(t, {});
	const stream = connect(t, sandbox);
	t.false('inbound|8080||' in (await fetchType(stream, typeUrl.cluster)));
	t.true('inbound|8080||' in (await fetchType(stream, typeUrl.cluster)));
	t.true('inbound|8080||' in (await fetchType(connect(t, sandbox), typeUrl.cluster)));
});

test('config › while told to forget, the stream that makes an entry is never told of its own services', async t => {
	const sandbox = await start(t, {});
	sandbox.faults.forgetInbound(true);
	const stream = connect(t, sandbox);
	for (let push = 0; push < 3; push++) {
		t.false('inbound|8080||' in (await fetchType(stream, typeUrl.cluster)));
		sandbox.touchServices();
	}
	t.true('inbound|8080||' in (await fetchType(connect(t, sandbox), typeUrl.cluster)));
});
