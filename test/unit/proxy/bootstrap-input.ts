import type {BootstrapInput} from '../../../src/proxy/index.ts';

/** What the golden file was made from. */
export const input: BootstrapInput = {
	config: {
		adminSocketPath: '/run/onramp/admin.sock',
		adsProtocol: 'delta',
		listenAddress: '0.0.0.0',
		readinessPort: 15021,
		metricsPort: 15090,
		maxDownstreamConnections: 2147483647,
		statsPrefixes: ['mine'],
		statsSuffixes: ['.mine'],
		statsRegexes: ['^mine.*'],
		runtimeValues: {'overload.x': '100', 'envoy.reloadable_features.http_reject_path_with_fragment': ''},
	},
	node: {
		id: 'sidecar~10.0.0.5~vm1.bar~bar.svc.cluster.local',
		cluster: 'grp.bar',
		locality: {region: 'r', zone: 'z'},
		metadata: {NAMESPACE: 'bar', INSTANCE_IPS: '10.0.0.5'},
	},
	xdsSocketPath: '/run/onramp/xds.sock',
	statusAddress: '0.0.0.0',
	statusPort: 15020,
};
