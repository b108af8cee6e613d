import {createSocket} from 'node:dgram';
import {once} from 'node:events';
import test, {type ExecutionContext} from 'ava';
import {systemClock} from '../../../src/lifecycle/index.ts';
import {typeUrl} from '../../../src/proto/types.ts';
import {FieldWriter} from '../../../src/proto/wire.ts';
import {freePorts} from '../../../src/sandbox/local-workload.ts';
import {encodeMessage, loadEnvoyProtos} from '../../support/envoy-protos.ts';
import {type Resource, setUpRelay} from '../../support/relay.ts';
import {tlsListener} from './ads.ts';
import {makeWorld, until} from './world.ts';

const protos = loadEnvoyProtos(['envoy/config/cluster/v3/cluster.proto']);
const any = (url: string, bytes: Buffer): Buffer => new FieldWriter().string(1, url).bytes(2, bytes).finish();

function cluster(fields: Record<string, unknown> & {name: string}): Resource {
	return [fields.name, any(typeUrl.cluster, encodeMessage(protos, 'envoy.config.cluster.v3.Cluster', fields))];
}

test('relay › while a cluster of Envoy warms, further clusters and listeners reach it', async t => {
	const world = await makeWorld();
	t.teardown(() => world.end());
	const {upstream, relay} = setUpRelay({clock: systemClock});
	t.teardown(() => relay.stop());
	await world.startXds([relay.service]);
	const [port] = await freePorts(1);
	const proxy = await world.start();
	const stream = await upstream.stream(1);
	stream.send(typeUrl.cluster, [cluster({name: 'first', type: 0})]);
	stream.send(typeUrl.listener, []);
	await until('ready', () => world.readiness.isReady);
	const warming = async () =>
		(await proxy.admin.stats('^cluster_manager\\.warming_clusters$')).get('cluster_manager.warming_clusters');

	// Whose endpoints never come.
	const edsConfig = {ads: {}, initial_fetch_timeout: {seconds: 0}, resource_api_version: 2};
	stream.send(typeUrl.cluster, [cluster({name: 'warms', type: 3, eds_cluster_config: {eds_config: edsConfig}})]);
	await until('a cluster that warms', async () => (await warming()) === 1);
	stream.send(typeUrl.cluster, [cluster({name: 'late', type: 0})]);
	stream.send(typeUrl.listener, [['late', any(typeUrl.listener, tlsListener('late', port!))]]);
	await until('both', async () => {
		const clusters = await proxy.admin.get('/clusters');
		const listeners = await proxy.admin.get('/config_dump?resource=dynamic_listeners');
		return /^late::/m.test(clusters) && listeners.includes('"late"');
	});
	t.is(await warming(), 1, 'and it still warms');
});

test('proxy › what holds a start up is named: clusters, and what each lacks', async t => {
	const world = await makeWorld();
	t.teardown(() => world.end());
	const {upstream, relay} = setUpRelay({clock: systemClock});
	t.teardown(() => relay.stop());
	await world.startXds([relay.service]);
	await world.start();
	const stream = await upstream.stream(1);
	const edsConfig = {ads: {}, initial_fetch_timeout: {seconds: 0}, resource_api_version: 2};
	const silent = await silentServer(t);
	stream.send(typeUrl.cluster, [
		cluster({name: 'one', type: 3, eds_cluster_config: {eds_config: edsConfig}}),
		cluster({name: 'two', type: 1, connect_timeout: {seconds: 1}, ...resolvedBy(silent, 'two.example')}),
	]);
	const reason = () => world.readiness.states()[0]!.reason;
	await until(reason, () => reason().includes('cluster: '));
	// The other is not even asked for before this one is there.
	t.is(reason(), 'envoy waits for DNS to answer for the hosts of a cluster: two');
	stream.send(typeUrl.cluster, [], ['two']);
	await until(reason, () => reason() === 'envoy waits for the endpoints of a cluster: one');
});

/** A server for names that says nothing; returns its port. */
async function silentServer(t: ExecutionContext): Promise<number> {
	const socket = createSocket('udp4').bind(0, '127.0.0.1');
	t.teardown(() => socket.close());
	await once(socket, 'listening');
	return socket.address().port;
}

function resolvedBy(port: number, name: string): Record<string, unknown> {
	const socketAddress = (address: string, portValue: number) => ({socket_address: {address, port_value: portValue}});
	return {
		dns_resolvers: [socketAddress('127.0.0.1', port)],
		load_assignment: {
			cluster_name: 'two',
			endpoints: [{lb_endpoints: [{endpoint: {address: socketAddress(name, 80)}}]}],
		},
	};
}
