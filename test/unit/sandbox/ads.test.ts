import {once} from 'node:events';
import http2 from 'node:http2';
import test, {type ExecutionContext} from 'ava';
import {shortType, typeUrl} from '../../../src/proto/types.ts';
import type {Message} from '../../../src/sandbox/envoy-types.ts';
import {type Sandbox, type SandboxOptions, startSandbox} from '../../../src/sandbox/index.ts';
import {type AdsStream, openAds, type Target, type VmNode, vmNode} from './client.ts';

const account = {namespace: 'bar', serviceAccount: 'vm'};
const node: VmNode = {...account, group: 'vm'};
const echo = {
	host: 'echo.bar.svc.cluster.local',
	namespace: 'bar',
	port: 80,
	targetPort: 8080,
	protocol: 'http',
} as const;
const endpoints = [{address: '10.9.0.1', port: 8080, spiffeId: 'spiffe://cluster.local/ns/bar/sa/echo'}];
const echoCluster = 'outbound|80||echo.bar.svc.cluster.local';

interface Setup {
	readonly sandbox: Sandbox;
	readonly target: Target;
	open(kind?: 'delta' | 'sotw', target?: Target): AdsStream;
}

async function start(t: ExecutionContext, options: SandboxOptions = {}): Promise<Setup> {
	const sandbox = await startSandbox({debounceMs: 1, ...options});
	t.teardown(() => sandbox.stop());
	sandbox.addWorkloadGroup({
		name: 'vm',
		namespace: 'bar',
		serviceAccount: 'vm',
		labels: {app: 'vm'},
		ports: {http: 8080},
	});
	const target = {address: sandbox.address, rootPem: sandbox.rootPem(), token: sandbox.issueToken(account)};
	return {
		sandbox,
		target,
		open(kind = 'delta', other = target) {
			const stream = openAds(other, kind);
			t.teardown(() => stream.close());
			return stream;
		},
	};
}

const resourcesOf = (response: Message): Message[] => (response['resources'] ?? []) as Message[];
const namesOf = (response: Message): string[] => resourcesOf(response).map(resource => String(resource['name'] ?? ''));
const nonceOf = (response: Message): string => String(response['nonce']);

/** Until a response of the type comes; acknowledges what passes by. */
async function nextOf(stream: AdsStream, type: string, kind: 'delta' | 'sotw' = 'delta'): Promise<Message> {
	for (;;) {
		const response = await stream.next();
		if (response['type_url'] === type) return response;
		if (kind === 'delta') stream.send({type_url: response['type_url'], response_nonce: response['nonce']});
	}
}

async function waitUntil(what: string, isTrue: () => boolean): Promise<void> {
	for (const deadline = Date.now() + 30_000; !isTrue(); ) {
		if (Date.now() > deadline) throw new Error(`never: ${what}`);
		await new Promise(resolve => setTimeout(resolve, 5));
	}
}

test('delta › first answers carry everything, without per-resource versions', async t => {
	const {sandbox, open} = await start(t);
	sandbox.addService({...echo, endpoints});
	const stream = open();
	stream.send({node: vmNode(node), type_url: typeUrl.cluster});
	const clusters = await nextOf(stream, typeUrl.cluster);
	t.deepEqual(namesOf(clusters), [echoCluster, 'BlackHoleCluster', 'PassthroughCluster', 'InboundPassthroughCluster']);
	t.true(resourcesOf(clusters).every(resource => resource['version'] === undefined));
	t.regex(nonceOf(clusters), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\/\d+[0-9a-f-]{36}$/);
	t.true(nonceOf(clusters).startsWith(String(clusters['system_version_info'])));
	stream.send({type_url: typeUrl.nameTable});
	const names = await nextOf(stream, typeUrl.nameTable);
	t.deepEqual(namesOf(names), ['']);
});

test('delta › endpoints follow clusters by themselves, and only then', async t => {
	const {sandbox, open} = await start(t);
	sandbox.addService({...echo, endpoints});
	const stream = open();
	stream.send({
		node: vmNode({...node, group: undefined}),
		type_url: typeUrl.endpoint,
		resource_names_subscribe: [echoCluster, 'outbound|1||gone'],
	});
	const first = await nextOf(stream, typeUrl.endpoint);
	t.deepEqual(namesOf(first), [echoCluster, 'outbound|1||gone']);
	t.deepEqual(
		Object.keys(resourcesOf(first)[1]!['resource'] as object).sort(),
		['@type', 'cluster_name'],
		'empty, not absent',
	);
	stream.send({type_url: typeUrl.endpoint, response_nonce: first['nonce']});
	stream.send({type_url: typeUrl.cluster});
	t.is((await stream.next())['type_url'], typeUrl.cluster);
	t.is((await stream.next())['type_url'], typeUrl.endpoint);
});

test('delta › what a returning client claims to have is sent again, and what is gone is said to be', async t => {
	const {sandbox, open} = await start(t);
	sandbox.addService({...echo, endpoints});
	const stream = open();
	const versions = {[echoCluster]: 'v7', 'outbound|80||old.bar.svc.cluster.local': 'v7'};
	stream.send({node: vmNode(node), type_url: typeUrl.cluster, initial_resource_versions: versions});
	const clusters = await nextOf(stream, typeUrl.cluster);
	t.true(namesOf(clusters).includes(echoCluster));
	t.deepEqual(clusters['removed_resources'], ['outbound|80||old.bar.svc.cluster.local']);
});

test('delta › a change of one service sends its cluster alone, and everything else whole, in push order', async t => {
	const {sandbox, open} = await start(t);
	const stream = open();
	stream.send({node: vmNode({...node, group: undefined}), type_url: typeUrl.listener});
	await nextOf(stream, typeUrl.listener);
	stream.send({type_url: typeUrl.route, resource_names_subscribe: ['80']});
	await nextOf(stream, typeUrl.route);
	stream.send({type_url: typeUrl.cluster});
	const clusters = await nextOf(stream, typeUrl.cluster);
	stream.send({type_url: typeUrl.cluster, response_nonce: clusters['nonce']});
	sandbox.addService({...echo, endpoints});
	const pushed = [await stream.next(), await stream.next(), await stream.next()];
	t.deepEqual(
		pushed.map(response => shortType(String(response['type_url']))),
		['CDS', 'LDS', 'RDS'],
	);
	t.deepEqual(namesOf(pushed[0]!), [echoCluster]);
	t.deepEqual(namesOf(pushed[1]!), ['0.0.0.0_80', 'virtualOutbound', 'virtualInbound']);
	sandbox.removeService(echo.host);
	const after = [await stream.next(), await stream.next()];
	t.deepEqual(after[0]!['removed_resources'], [echoCluster]);
	t.deepEqual(after[1]!['removed_resources'], ['0.0.0.0_80']);
});

test('delta › an ACK, a NACK and a stale nonce get no answer; a new name gets itself', async t => {
	const {sandbox, open} = await start(t);
	sandbox.addService({...echo, endpoints});
	sandbox.addService({...echo, port: 81, endpoints});
	const second = 'outbound|81||echo.bar.svc.cluster.local';
	const stream = open();
	const type = typeUrl.endpoint;
	stream.send({node: vmNode({...node, group: undefined}), type_url: type, resource_names_subscribe: [echoCluster]});
	const first = await nextOf(stream, type);
	stream.send({type_url: type, response_nonce: first['nonce'], error_detail: {code: 13, message: 'no thanks'}});
	stream.send({type_url: type, response_nonce: first['nonce']});
	stream.send({type_url: type, response_nonce: 'stale', resource_names_subscribe: [second]});
	stream.send({type_url: type, resource_names_subscribe: [second]});
	t.deepEqual(namesOf(await stream.next()), [second]);
	const [nack, ack] = sandbox.acks.all;
	t.deepEqual(nack!.error, {code: 13, message: 'no thanks'});
	t.is(ack!.error, undefined);
	t.is(ack!.nonce, nonceOf(first));
	t.is(sandbox.acks.all.length, 2);
});

test('SotW › names decide the answer: added ones are sent, fewer are only noted, none unsubscribe', async t => {
	const {sandbox, open} = await start(t);
	sandbox.addService({...echo, endpoints});
	sandbox.addService({...echo, port: 81, endpoints});
	const second = 'outbound|81||echo.bar.svc.cluster.local';
	const stream = open('sotw');
	const type = typeUrl.endpoint;
	const send = (names: string[], response?: Message) =>
		stream.send({
			type_url: type,
			resource_names: names,
			version_info: response?.['version_info'],
			response_nonce: response?.['nonce'],
		});
	stream.send({node: vmNode({...node, group: undefined}), type_url: type, resource_names: [echoCluster]});
	const first = await nextOf(stream, type, 'sotw');
	t.is(resourcesOf(first).length, 1);
	t.true(nonceOf(first).startsWith(String(first['version_info'])));
	send([echoCluster], first);
	send([echoCluster, second], first);
	const both = await nextOf(stream, type, 'sotw');
	t.is(resourcesOf(both).length, 2);
	send([second], both);
	send([], both);
	stream.send({type_url: typeUrl.cluster});
	t.is((await stream.next())['type_url'], typeUrl.cluster, 'nothing was sent for what was only taken away');
	t.deepEqual(sandbox.connections()[0]!.typesWatched.map(shortType), ['CDS']);
});

const refusals: {title: string; node: () => Message; code: number; details: RegExp}[] = [
	{title: 'a node without id', node: () => ({cluster: 'x'}), code: 3, details: /^missing node information$/},
	{
		title: 'a node id of three parts',
		node: () => ({...vmNode(node), id: 'sidecar~10.0.0.5~vm1.bar'}),
		code: 3,
		details: /^missing parts in the service node "sidecar~10.0.0.5~vm1.bar"$/,
	},
	{
		title: 'DNS_CAPTURE as a boolean',
		node: () => vmNode({...node, metadata: {DNS_CAPTURE: true}}),
		code: 3,
		details: /^failed to unmarshal node metadata \(\{.*"DNS_CAPTURE":true.*\}\): invalid syntax$/,
	},
	{
		title: 'INSTANCE_IPS as a list',
		node: () => vmNode({...node, metadata: {INSTANCE_IPS: ['10.0.0.5']}}),
		code: 3,
		details:
			/cannot unmarshal array into Go struct field BootstrapNodeMetadata2\.NodeMetadata\.INSTANCE_IPS of type string$/,
	},
	{
		title: 'a port as a string',
		node: () => vmNode({...node, metadata: {ENVOY_STATUS_PORT: '15021'}}),
		code: 3,
		details: /cannot unmarshal string into .*ENVOY_STATUS_PORT of type int$/,
	},
	{
		title: 'a label that is a number',
		node: () => vmNode({...node, metadata: {LABELS: {tier: 1}}}),
		code: 3,
		details: /cannot unmarshal number into .*LABELS of type string$/,
	},
	{
		title: 'PROXY_CONFIG as text',
		node: () => vmNode({...node, metadata: {PROXY_CONFIG: '{}'}}),
		code: 3,
		details: /cannot unmarshal string into .*PROXY_CONFIG of type map\[string\]json\.RawMessage$/,
	},
	{
		title: 'another service account than the token has',
		node: () => vmNode({...node, serviceAccount: 'root'}),
		code: 7,
		details:
			/^authorization failed: no identities \(\[spiffe:\/\/cluster\.local\/ns\/bar\/sa\/vm\]\) matched bar\/root$/,
	},
	{
		title: 'another namespace than the token has',
		node: () => vmNode({...node, namespace: 'kube-system'}),
		code: 7,
		details: /matched kube-system\/vm$/,
	},
	{
		title: 'a WorkloadGroup that does not exist',
		node: () => vmNode({...node, group: 'nobody'}),
		code: 9,
		details: /^auto-registration WorkloadEntry of vm1\.bar failed: cannot find WorkloadGroup bar\/nobody$/,
	},
];
for (const {title, node: makeNode, code, details} of refusals) {
	test(`node › refuses ${title}`, async t => {
		const {sandbox, open} = await start(t);
		for (const kind of ['delta', 'sotw'] as const) {
			const stream = open(kind);
			stream.send({node: makeNode(), type_url: typeUrl.cluster});
			const status = await stream.ended;
			t.is(status.code, code);
			t.regex(status.details, details);
		}
		t.deepEqual(sandbox.workloadEntries(), []);
		t.deepEqual(sandbox.connections(), []);
	});
}

test('ADS › a stream without credentials ends before its first message', async t => {
	const {sandbox, target, open} = await start(t);
	const anonymous = open('delta', {...target, token: undefined});
	t.like(await anonymous.ended, {code: 16, details: 'authentication failure'});
	sandbox.faults.refuse({ads: {code: 'unavailable', message: 'server is not ready to serve discovery information'}});
	t.like(await open().ended, {code: 14, details: 'server is not ready to serve discovery information'});
});

test('WorkloadEntry › is made from group and node, and named by the first address', async t => {
	const {sandbox, open} = await start(t);
	const stream = open();
	const metadata = {
		LABELS: {version: 'v2', 'istio-locality': 'r.z'},
		NETWORK: 'vmnet',
		INSTANCE_IPS: 'fd00::5,10.0.0.5',
	};
	stream.send({node: vmNode({...node, metadata}), type_url: typeUrl.cluster});
	await stream.next();
	const [entry] = sandbox.workloadEntries();
	t.like(entry, {
		name: 'vm-fd00--5-vmnet',
		namespace: 'bar',
		labels: {app: 'vm', version: 'v2'},
		spec: {address: 'fd00::5', serviceAccount: 'vm', network: 'vmnet', ports: {http: 8080}},
	});
	t.is(entry!.annotations['istio.io/autoRegistrationGroup'], 'vm');
	t.truthy(entry!.annotations['istio.io/connectedAt']);
	t.is(entry!.annotations['proxy.istio.io/health-checks-enabled'], undefined);
	t.like(sandbox.connections()[0], {
		id: 'vm1.bar-1',
		identity: 'spiffe://cluster.local/ns/bar/sa/vm',
		typesWatched: [typeUrl.cluster],
	});
});

test('WorkloadEntry › of another service account is refused with code Unknown, as istiod does', async t => {
	const {sandbox, open} = await start(t);
	sandbox.addWorkloadGroup({name: 'strict', namespace: 'bar', serviceAccount: 'somebody-else'});
	const stream = open();
	stream.send({node: vmNode({...node, group: 'strict'}), type_url: typeUrl.cluster});
	const details = 'registration of WorkloadEntry service account mismatch: "vm" vs "somebody-else"';
	t.like(await stream.ended, {code: 2, details});
	t.deepEqual(sandbox.workloadEntries(), []);
});

test('WorkloadEntry › outlives its last stream by the grace period, and a return in time keeps it', async t => {
	const {sandbox, open} = await start(t, {gracePeriodMs: 150});
	const join = async () => {
		const stream = open();
		stream.send({node: vmNode(node), type_url: typeUrl.cluster});
		await stream.next();
		return stream;
	};
	const [first, second] = [await join(), await join()];
	first.close();
	await waitUntil('one stream left', () => sandbox.connections().length === 1);
	t.is(sandbox.workloadEntries()[0]!.annotations['istio.io/disconnectedAt'], undefined, 'the other still holds it');
	second.close();
	await waitUntil(
		'disconnected',
		() => sandbox.workloadEntries()[0]?.annotations['istio.io/disconnectedAt'] !== undefined,
	);
	t.is(sandbox.workloadEntries()[0]!.annotations['istio.io/connectedAt'], undefined);
	const third = await join();
	t.is(sandbox.workloadEntries()[0]!.annotations['istio.io/disconnectedAt'], undefined);
	third.close();
	await waitUntil('deleted', () => sandbox.workloadEntries().length === 0);
});

test('WorkloadEntry › survives its control plane, which deletes nothing while it is gone', async t => {
	const {sandbox, open} = await start(t, {gracePeriodMs: 30});
	const join = async () => {
		const stream = open();
		stream.send({node: vmNode(node), type_url: typeUrl.cluster});
		await stream.next();
		return stream;
	};
	const stream = await join();
	await sandbox.faults.stop();
	await stream.ended;
	await new Promise(resolve => setTimeout(resolve, 100)); // three grace periods in which nothing may happen
	t.is(sandbox.workloadEntries().length, 1);
	await sandbox.faults.restart();
	await join();
	t.is(sandbox.workloadEntries()[0]!.annotations['istio.io/disconnectedAt'], undefined);
});

test('health › an entry with a readiness probe is an endpoint only while it is reported healthy', async t => {
	const {sandbox, open} = await start(t);
	sandbox.addService({...echo, selector: {app: 'vm'}});
	const stream = open();
	const metadata = {PROXY_CONFIG: {readinessProbe: {httpGet: {port: 8080}}}};
	const health = typeUrl.health;
	stream.send({type_url: health, error_detail: {code: 13, message: 'too early to count'}});
	stream.send({node: vmNode({...node, metadata}), type_url: typeUrl.endpoint, resource_names_subscribe: [echoCluster]});
	const endpointsIn = (response: Message) =>
		JSON.stringify(resourcesOf(response)).match(/"address":"10\.0\.0\.5"/g)?.length ?? 0;
	t.is(endpointsIn(await nextOf(stream, typeUrl.endpoint)), 0);
	t.deepEqual(sandbox.workloadEntries()[0]!.status.conditions, []);
	const nextWith = async (count: number) => {
		for (;;) if (endpointsIn(await nextOf(stream, typeUrl.endpoint)) === count) return;
	};
	stream.send({type_url: health});
	await nextWith(1);
	t.like(sandbox.workloadEntries()[0]!.status.conditions[0], {type: 'Healthy', status: 'True'});
	stream.send({type_url: health, error_detail: {code: 13, message: 'connection refused'}});
	await nextWith(0);
	t.like(sandbox.workloadEntries()[0]!.status.conditions[0], {status: 'False', message: 'connection refused'});
});

test('trust bundle › goes out over ADS in a mesh with several roots, and only there', async t => {
	const {sandbox, open} = await start(t, {isMultiRoot: true});
	const stream = open();
	stream.send({node: vmNode({...node, group: undefined}), type_url: typeUrl.proxyConfig});
	const pems = (response: Message) =>
		Buffer.from(String((resourcesOf(response)[0]!['resource'] as Message)['value']), 'base64')
			.toString('latin1')
			.match(/BEGIN CERT/g)!.length;
	t.is(pems(await stream.next()), 1);
	await sandbox.faults.rotateRoot();
	t.is(pems(await stream.next()), 2);
	const {open: openPlain} = await start(t);
	const plain = openPlain();
	plain.send({node: vmNode({...node, group: undefined}), type_url: typeUrl.proxyConfig});
	plain.send({type_url: typeUrl.nameTable});
	t.is((await plain.next())['type_url'], typeUrl.nameTable);
});

test('push › unchanged configuration is sent again byte for byte', async t => {
	const {sandbox, open} = await start(t);
	sandbox.addService({...echo, endpoints, selector: {app: 'vm'}});
	const take = async () => {
		const stream = open();
		stream.send({node: vmNode(node), type_url: typeUrl.listener});
		const listeners = await stream.next();
		stream.send({type_url: typeUrl.cluster});
		const clusters = await nextOf(stream, typeUrl.cluster);
		stream.close();
		return JSON.stringify([listeners['resources'], clusters['resources']]);
	};
	await take();
	const before = await take();
	sandbox.touchServices();
	t.is(await take(), before);
	sandbox.touchServices(1);
	t.not(await take(), before);
});

test('push › is recorded with its size, and its ACK can be waited for', async t => {
	const {sandbox, open} = await start(t);
	sandbox.addServices(50);
	const stream = open();
	stream.send({node: vmNode({...node, group: undefined}), type_url: typeUrl.cluster});
	const response = await stream.next();
	const push = sandbox.pushes.all.find(event => event.nonce === response['nonce'])!;
	t.is(push.resources, 53);
	t.true(push.bytes > 50_000);
	const acked = sandbox.waitForAck(typeUrl.cluster, {sinceMs: push.at});
	stream.send({type_url: typeUrl.cluster, response_nonce: response['nonce']});
	t.is((await acked).nonce, push.nonce);
	t.true((await acked).at >= push.at);
	await t.throwsAsync(sandbox.waitForAck(typeUrl.route, {deadlineMs: 10}), {message: /^no ACK of .* within 10 ms$/});
});

test('server › tells connections to go at their maximum age, and lets their streams finish', async t => {
	const {sandbox, open} = await start(t, {maxConnectionAgeMs: 1000});
	const stream = open();
	stream.send({node: vmNode(node), type_url: typeUrl.cluster});
	await stream.next();
	const old = sandbox.connections()[0]!.id;
	// Opened after the stream's own connection, which therefore has been told to go by then, too.
	const session = http2.connect(`https://${sandbox.address}`, {
		ca: sandbox.rootPem(),
		servername: 'istiod.istio-system.svc',
	});
	t.teardown(() => session.destroy());
	await once(session, 'goaway');
	t.true(sandbox.connections().some(({id}) => id === old));
});

test('server › a name outside its certificate is not served, as with istiod: no address, no localhost', async t => {
	const {sandbox} = await start(t);
	const session = http2.connect(`https://${sandbox.address}`, {ca: sandbox.rootPem(), servername: 'localhost'});
	const [error] = (await once(session, 'error')) as [NodeJS.ErrnoException];
	t.is(error.code, 'ERR_TLS_CERT_ALTNAME_INVALID');
});

test('server › types and methods it does not know harm nobody', async t => {
	const {sandbox, open} = await start(t);
	const stream = open();
	stream.send({node: vmNode(node), type_url: 'type.googleapis.com/no.such.Type'});
	stream.send({type_url: typeUrl.nameTable});
	t.is((await stream.next())['type_url'], typeUrl.nameTable);
	const session = http2.connect(`https://${sandbox.address}`, {
		ca: sandbox.rootPem(),
		servername: 'istiod.istio-system.svc',
	});
	t.teardown(() => session.destroy());
	const call = session.request({':method': 'POST', ':path': '/grpc.health.v1.Health/Check'});
	const [headers] = (await once(call, 'response')) as [Record<string, string>];
	t.is(headers['grpc-status'], '12');
	const garbage = session.request({
		':method': 'POST',
		':path': '/istio.v1.auth.IstioCertificateService/CreateCertificate',
	});
	garbage.end(Buffer.from([7, 0, 0, 0, 1, 0]));
	const [answer] = (await once(garbage, 'response')) as [Record<string, string>];
	t.is(answer['grpc-status'], '13');
});
