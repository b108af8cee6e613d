import type {ProxyConfig} from '../config/types.ts';
import {renderMetricsListener, renderReadinessListener} from './bootstrap-listeners.ts';
import {renderStatsConfig} from './bootstrap-stats.ts';

export interface BootstrapInput {
	readonly config: Pick<
		ProxyConfig,
		| 'adminSocketPath'
		| 'adsProtocol'
		| 'listenAddress'
		| 'readinessPort'
		| 'metricsPort'
		| 'maxDownstreamConnections'
		| 'statsPrefixes'
		| 'statsSuffixes'
		| 'statsRegexes'
		| 'runtimeValues'
	>;
	/** `{id, cluster, locality, metadata}` as proto-JSON. */
	readonly node: Readonly<Record<string, unknown>>;
	readonly xdsSocketPath: string;
	/** Address and port of the agent's HTTP server, 0 = none. */
	readonly statusAddress: string;
	readonly statusPort: number;
}

type Json = Record<string, unknown>;

/** `srw-------`; Envoy wants the number in decimal. */
const adminSocketMode = 0o600;

/**
 * Envoy's bootstrap as proto-JSON. Pure, and the same input gives the same bytes: the hash of the result decides
 * whether a running Envoy may be adopted. Names that istiod's configuration refers to (`sds-grpc`, `xds-grpc`,
 * `agent`, `prometheus_stats`) are Istio's.
 */
export function renderBootstrap(input: BootstrapInput): Json {
	const {config, node, xdsSocketPath, statusAddress, statusPort} = input;
	return {
		node,
		admin: {address: pipe(config.adminSocketPath, adminSocketMode)},
		application_log_config: {
			log_format: {text_format: '%Y-%m-%dT%T.%e%z\t%l\tenvoy %n %g:%#\t%v\tthread=%t'},
		},
		dynamic_resources: {
			// No time limit: half a configuration must never be served. What is missing shows in the readiness gate.
			lds_config: fromAds(),
			cds_config: fromAds(),
			ads_config: {
				api_type: config.adsProtocol === 'delta' ? 'DELTA_GRPC' : 'GRPC',
				transport_api_version: 'V3',
				set_node_on_first_message_only: true,
				grpc_services: [
					{
						envoy_grpc: {
							cluster_name: 'xds-grpc',
							// The default grows to 30 s, and grows still while the agent has nothing to say.
							retry_policy: {retry_back_off: {base_interval: '0.1s', max_interval: '1s'}},
						},
					},
				],
			},
		},
		static_resources: {
			clusters: [
				localCluster('prometheus_stats', pipe(config.adminSocketPath)),
				...(statusPort === 0 ? [] : [localCluster('agent', socketAddress(reachable(statusAddress), statusPort))]),
				grpcCluster('sds-grpc', xdsSocketPath),
				grpcCluster('xds-grpc', xdsSocketPath),
			],
			listeners: [
				renderMetricsListener(config.listenAddress, config.metricsPort),
				renderReadinessListener(config.listenAddress, config.readinessPort, statusPort !== 0),
			],
		},
		layered_runtime: {
			layers: [
				{name: 'global config', static_layer: renderRuntime(config.runtimeValues)},
				{name: 'admin', admin_layer: {}},
			],
		},
		stats_config: renderStatsConfig(config),
		// Statistics of a cluster nobody calls cost nothing then.
		deferred_stat_options: {enable_deferred_creation_stats: true},
		overload_manager: {
			resource_monitors: [
				{
					name: 'envoy.resource_monitors.global_downstream_max_connections',
					typed_config: {
						'@type':
							'type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig',
						max_active_downstream_connections: config.maxDownstreamConnections,
					},
				},
			],
		},
		bootstrap_extensions: [
			{
				name: 'envoy.bootstrap.internal_listener',
				typed_config: {
					'@type': 'type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener',
					buffer_size_kb: 64,
				},
			},
		],
	};
}

function fromAds(): Json {
	return {ads: {}, initial_fetch_timeout: '0s', resource_api_version: 'V3'};
}

/** Istio's runtime defaults with the user's laid over them; '' takes a key away, true and false become booleans. */
function renderRuntime(values: Readonly<Record<string, string>>): Json {
	const runtime: Json = {
		'envoy.deprecated_features:envoy.config.listener.v3.Listener.hidden_envoy_deprecated_use_original_dst': true,
		'envoy.reloadable_features.http_reject_path_with_fragment': false,
		're2.max_program_size.error_level': '32768',
	};
	for (const [key, value] of Object.entries(values)) {
		if (value === '') delete runtime[key];
		else runtime[key] = value === 'true' ? true : value === 'false' ? false : value;
	}
	return runtime;
}

function localCluster(name: string, address: Json): Json {
	return {
		name,
		alt_stat_name: `${name};`,
		type: 'STATIC',
		connect_timeout: '0.25s',
		load_assignment: assignment(name, address),
	};
}

function grpcCluster(name: string, socketPath: string): Json {
	return {
		name,
		alt_stat_name: `${name};`,
		type: 'STATIC',
		connect_timeout: '1s',
		load_assignment: assignment(name, pipe(socketPath)),
		circuit_breakers: {
			thresholds: ['DEFAULT', 'HIGH'].map(priority => ({
				priority,
				max_connections: 100000,
				max_pending_requests: 100000,
				max_requests: 100000,
			})),
		},
		typed_extension_protocol_options: {
			'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
				'@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
				explicit_http_config: {http2_protocol_options: {}},
			},
		},
	};
}

function assignment(name: string, address: Json): Json {
	return {cluster_name: name, endpoints: [{lb_endpoints: [{endpoint: {address}}]}]};
}

function pipe(path: string, mode?: number): Json {
	return {pipe: mode === undefined ? {path} : {path, mode}};
}

/** Where to ask what is bound to this address; `::` may leave IPv4 out, by the kernel's `bindv6only`. */
function reachable(address: string): string {
	if (address === '0.0.0.0') return '127.0.0.1';
	return address === '::' ? '::1' : address;
}

function socketAddress(address: string, port: number): Json {
	return {socket_address: {address, port_value: port}};
}
