import test from 'ava';
import {buildNode, encodeNode} from '../../../src/control-plane/index.ts';
import {loadEnvoyTypes} from '../../../src/sandbox/envoy-types.ts';
import {NodeError, parseNode} from '../../../src/sandbox/node.ts';
import {workload} from './world.ts';

const settings = {readinessPort: 15_021, metricsPort: 15_090};
const types = loadEnvoyTypes();

/** Read by somebody else's protobuf library, and as strictly as istiod reads it. */
const decode = (encoded: Buffer) => types.decode('envoy.config.core.v3.Node', encoded);

const full = {
	...workload,
	group: 'checkout',
	addresses: ['10.0.0.5', 'fd00::5'],
	labels: {app: 'checkout', empty: '', 'version/x': 'v1'},
	locality: 'eu/zone-a/rack-1',
	isDnsCaptured: true,
	metadata: {NETWORK: 'net-1', MESH_ID: '', NAME: 'not this one', POD_PORTS: '[{"name":"http","containerPort":8080}]'},
	proxyConfig: {concurrency: 0, statsCompression: false, drainDuration: '45s', list: [1, 'a', null, {b: true}]},
};

test('node › is taken by a reader as strict as istiod, with each value of its type', t => {
	const node = parseNode(
		decode(
			encodeNode(buildNode(full, {...settings, dnsAddress: '127.0.0.1:15053', platform: {aws_region: 'r'}}), '1.2.3'),
		),
	);
	t.like(node, {
		id: 'vm1.bar',
		name: 'vm1',
		namespace: 'bar',
		serviceAccount: 'vm',
		addresses: ['10.0.0.5', 'fd00::5'],
		clusterId: 'Kubernetes',
		network: 'net-1',
		labels: full.labels,
		group: 'checkout',
		locality: 'eu/zone-a/rack-1',
	});
	t.like(node.metadata, {
		ENVOY_STATUS_PORT: 15_021,
		ENVOY_PROMETHEUS_PORT: 15_090,
		DNS_CAPTURE: 'true',
		DNS_PROXY_ADDR: '127.0.0.1:15053',
		PLATFORM_METADATA: {aws_region: 'r'},
		INSTANCE_IPS: '10.0.0.5,fd00::5',
		ISTIO_VERSION: '1.31.0',
		PROXY_CONFIG: full.proxyConfig,
		STATIC_LABELS: full.labels,
	});
});

test('node › a typed key wins over a free one of the same name, and a free one stays a text', t => {
	const {metadata} = buildNode(full, settings);
	t.is(metadata['NAME'], 'vm1');
	t.is(metadata['MESH_ID'], '');
});

test('node › what was not asked for is not there, as istiod would act on it', t => {
	const {metadata, locality} = buildNode(workload, settings);
	for (const key of ['AUTO_REGISTER_GROUP', 'DNS_CAPTURE', 'DNS_PROXY_ADDR', 'PLATFORM_METADATA'])
		t.false(key in metadata, key);
	t.deepEqual(locality, {});
});

test('node › its id has type, address, name and domain, its user agent is the agent', t => {
	const node = decode(encodeNode(buildNode(full, settings), '1.2.3')) as Record<string, unknown>;
	t.is(node['id'], 'sidecar~10.0.0.5~vm1.bar~bar.svc.cluster.local');
	t.is(node['cluster'], 'vm.bar');
	t.is(node['user_agent_name'], 'onramp');
	t.is(node['user_agent_version'], '1.2.3');
});

test('node › the reader is strict: a port as text would refuse the whole stream', t => {
	const built = buildNode(full, settings);
	const wrong = {...built, metadata: {...built.metadata, ENVOY_STATUS_PORT: '15021'}};
	t.throws(() => parseNode(decode(encodeNode(wrong, ''))), {instanceOf: NodeError, message: /ENVOY_STATUS_PORT/});
});
