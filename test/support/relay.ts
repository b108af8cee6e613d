// The relay between a control plane and an Envoy that both are played by hand.
import {Metrics, Readiness} from '../../src/lifecycle/index.ts';
import {silentLogger} from '../../src/log.ts';
import {typeUrl} from '../../src/proto/types.ts';
import {FieldWriter} from '../../src/proto/wire.ts';
import {type RelayDeps, startRelay} from '../../src/relay/index.ts';
import {anyOf, FakeEnvoy, FakeUpstream} from './fake-ads.ts';
import {FakeClock} from './fake-clock.ts';

/** Name and encoded Any. */
export type Resource = readonly [string, Buffer];

/** An EDS cluster: name 1, type 2 = EDS, eds_cluster_config 3. */
export function edsCluster(name: string, content = name): Resource {
	const body = new FieldWriter()
		.string(1, name)
		.uint(2, 3)
		.message(3, config => config.string(2, name))
		.string(28, content)
		.finish();
	return [name, new FieldWriter().string(1, typeUrl.cluster).bytes(2, body).finish()];
}

export const resource = (url: string, name: string, content = name): Resource => [name, anyOf(url, name, content)];

export const relayConfig: RelayDeps['config'] = {
	protocol: 'delta',
	isNameTableWanted: false,
	isProxyConfigWanted: false,
	removeUnknownExtensions: 'never',
	socketPath: '',
	snapshotDir: undefined,
};

export function setUpRelay(change: Partial<RelayDeps> = {}) {
	const upstream = new FakeUpstream();
	const clock = new FakeClock();
	const readiness = new Readiness(['configuration']);
	const relay = startRelay({
		config: relayConfig,
		openAdsStream: upstream.open,
		backoff: {baseMs: 1000, maxMs: 60_000},
		node: () => Buffer.from([0x0a, 1, 0x78]),
		owner: 'vm',
		gate: readiness.gate('configuration'),
		clock,
		random: () => 0.5,
		log: silentLogger,
		metrics: new Metrics(),
		...change,
	});
	const connect = (protocol: 'delta' | 'sotw' = 'delta') => {
		const envoy = new FakeEnvoy(protocol);
		const {DeltaAggregatedResources, StreamAggregatedResources} = relay.service.implementation as Record<
			string,
			(call: unknown) => void
		>;
		(protocol === 'delta' ? DeltaAggregatedResources! : StreamAggregatedResources!)(envoy.call);
		return envoy;
	};
	return {upstream, clock, readiness, relay, connect};
}
