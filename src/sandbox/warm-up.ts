import type {EnvoyTypes} from './envoy-types.ts';
import {ConfigGenerator} from './generator.ts';
import type {ProxyNode} from './node.ts';
import {Registry} from './registry.ts';
import {WorkloadEntries} from './workload-entries.ts';

const node: ProxyNode = {
	id: 'warm.up',
	name: 'warm',
	namespace: 'up',
	serviceAccount: 'up',
	addresses: ['127.0.0.1'],
	clusterId: '',
	network: '',
	labels: {app: 'warm'},
	group: 'warm',
	workloadEntry: '',
	interception: 'REDIRECT',
	hasReadinessProbe: false,
	locality: '',
	metadata: {},
};

/**
 * Builds one of everything and throws it away: protobufjs compiles its codecs at first use, which would otherwise
 * add some 100 ms to the first join that is measured.
 */
export function warmUp(types: EnvoyTypes): void {
	const registry = new Registry();
	registry.addGroup({name: 'warm', namespace: 'up'});
	for (const protocol of ['grpc', 'tcp'] as const) {
		const endpoints = [{address: '127.0.0.1', port: 1, spiffeId: 'spiffe://up/ns/up/sa/up'}];
		registry.addService({
			host: `${protocol}.up`,
			namespace: 'up',
			port: 80,
			protocol,
			selector: {app: 'warm'},
			endpoints,
		});
	}
	const entries = new WorkloadEntries({
		findGroup: (namespace, name) => registry.group(namespace, name),
		gracePeriodMs: 0,
		onChange: () => {},
	});
	entries.connect(node, {namespace: 'up', serviceAccount: 'up'}, 'warm', new Date());
	entries.suspend();
	const settings = {hasIstioExtensions: true, trustDomain: 'up', clusterId: '', mtls: 'permissive', ports: {}} as const;
	const generator = new ConfigGenerator({types, registry, entries, settings: () => settings});
	const names = generator.clusters(node, {hasInbound: true}).map(({name}) => name);
	generator.endpoints(names);
	generator.listeners(node, {hasInbound: true});
	generator.routes(node, ['80']);
}
