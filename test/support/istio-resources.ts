import {FieldWriter} from '../../src/proto/wire.ts';
import {anyOf, encodeMessage, loadEnvoyProtos} from './envoy-protos.ts';

/** Listeners and clusters of the kind istiod sends to a VM's sidecar, as plain objects and as bytes. */
export const root = loadEnvoyProtos([
	'envoy/config/bootstrap/v3/bootstrap.proto',
	'envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto',
	'envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.proto',
	'envoy/extensions/filters/http/router/v3/router.proto',
	'envoy/extensions/filters/http/fault/v3/fault.proto',
	'envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.proto',
	'envoy/extensions/common/matching/v3/extension_matcher.proto',
	'envoy/extensions/transport_sockets/tls/v3/tls.proto',
	'envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto',
	'envoy/extensions/upstreams/http/v3/http_protocol_options.proto',
	'envoy/service/discovery/v3/discovery.proto',
	'udpa/type/v1/typed_struct.proto',
	'xds/type/v3/typed_struct.proto',
]);

export type Json = Record<string, unknown>;
export type PackedAny = {type_url: string; value: Buffer};

const google = 'type.googleapis.com/';
export const listenerType = 'envoy.config.listener.v3.Listener';
export const clusterType = 'envoy.config.cluster.v3.Cluster';
const tls = 'envoy.extensions.transport_sockets.tls.v3';

export function any(type: string, value: Json): PackedAny {
	return anyOf(root, type, value);
}

/** An Any of a type the test has no proto for. */
export function foreign(type: string, value = Buffer.from('\x0a\x03abc')): PackedAny {
	return {type_url: google + type, value};
}

export function typedStruct(inner: string, wrapper: 'udpa.type.v1' | 'xds.type.v3' = 'udpa.type.v1'): PackedAny {
	return any(`${wrapper}.TypedStruct`, {
		type_url: google + inner,
		value: {fields: {protocol: {stringValue: 'istio-peer-exchange'}}},
	});
}

export const httpMetadata = {
	name: 'istio.metadata_exchange',
	typed_config: typedStruct('io.istio.http.peer_metadata.Config'),
};
export const httpAlpn = {
	name: 'istio.alpn',
	typed_config: foreign('istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig'),
};
export const httpStats = {name: 'istio.stats', typed_config: foreign('stats.PluginConfig')};
export const fault = {
	name: 'envoy.filters.http.fault',
	typed_config: any('envoy.extensions.filters.http.fault.v3.HTTPFault', {}),
};
export const router = {
	name: 'envoy.filters.http.router',
	typed_config: any('envoy.extensions.filters.http.router.v3.Router', {}),
};
export const tcpMetadata = {
	name: 'istio.metadata_exchange',
	typed_config: typedStruct('envoy.tcp.metadataexchange.config.MetadataExchange'),
};
export const tcpStats = {name: 'istio.stats', typed_config: foreign('stats.PluginConfig')};
export const tcpProxy = {
	name: 'envoy.filters.network.tcp_proxy',
	typed_config: any('envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy', {stat_prefix: 'tcp', cluster: 'c'}),
};

export function connectionManager(http_filters: readonly Json[], more: Json = {}): Json {
	return {
		name: 'envoy.filters.network.http_connection_manager',
		typed_config: any('envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager', {
			stat_prefix: 'http',
			route_config: {
				name: 'r',
				virtual_hosts: [{name: 'v', domains: ['*'], routes: [{match: {prefix: '/'}, route: {cluster: 'c'}}]}],
			},
			http_filters,
			...more,
		}),
	};
}

export function downstreamTls(alpn_protocols: readonly string[]): Json {
	return {
		name: 'envoy.transport_sockets.tls',
		typed_config: any(`${tls}.DownstreamTlsContext`, {
			common_tls_context: {alpn_protocols, tls_params: {tls_minimum_protocol_version: 'TLSv1_2'}},
			require_client_certificate: {value: true},
		}),
	};
}

export function upstreamTls(alpn_protocols: readonly string[]): Json {
	return {
		name: 'envoy.transport_sockets.tls',
		typed_config: any(`${tls}.UpstreamTlsContext`, {
			common_tls_context: {alpn_protocols},
			sni: 'outbound_.80_._.a.b.svc',
		}),
	};
}

export function address(port: number): Json {
	return {socket_address: {address: '127.0.0.1', port_value: port}};
}

export function outboundListener(http_filters: readonly Json[], more: Json = {}): Json {
	return {
		name: '10.0.0.1_80',
		address: address(10080),
		filter_chains: [{filters: [connectionManager(http_filters)]}],
		traffic_direction: 'OUTBOUND',
		...more,
	};
}

/** About 1.2 kB, as those of a default istiod. */
export function meshCluster(name: string, {isMeshed = true} = {}): Json {
	return {
		name,
		type: 'STATIC',
		connect_timeout: {seconds: 10},
		circuit_breakers: {
			thresholds: [
				{
					max_connections: {value: 4294967295},
					max_requests: {value: 4294967295},
					max_retries: {value: 4294967295},
					track_remaining: true,
				},
			],
		},
		common_lb_config: {},
		metadata: {
			filter_metadata: {
				istio: {
					fields: {
						services: {
							listValue: {
								values: [
									{
										structValue: {
											fields: {
												host: {stringValue: name},
												name: {stringValue: 'a'},
												namespace: {stringValue: 'default'},
											},
										},
									},
								],
							},
						},
					},
				},
			},
		},
		typed_extension_protocol_options: {
			'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': any(
				'envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
				{
					explicit_http_config: {http2_protocol_options: {max_concurrent_streams: {value: 1073741824}}},
				},
			),
		},
		transport_socket_matches: [
			{
				name: 'tlsMode-istio',
				match: {fields: {tlsMode: {stringValue: 'istio'}}},
				transport_socket: upstreamTls(isMeshed ? ['istio-peer-exchange', 'istio'] : ['istio']),
			},
		],
		filters: isMeshed ? [{name: 'istio.metadata_exchange', typed_config: tcpMetadata.typed_config}] : [],
	};
}

export function packListener(listener: Json): Buffer {
	return encodeMessage(root, 'google.protobuf.Any', any(listenerType, listener));
}

export function packCluster(cluster: Json): Buffer {
	return encodeMessage(root, 'google.protobuf.Any', any(clusterType, cluster));
}

export interface ListedExtension {
	readonly category: string;
	readonly name: string;
	readonly types?: readonly string[];
	readonly isDisabled?: boolean;
}

/** An encoded core.v3.Node that lists these extensions. */
export function nodeWith(extensions: readonly ListedExtension[]): Buffer {
	const node = new FieldWriter().string(1, 'sidecar~10.0.0.9~vm.ns~ns.svc.cluster.local');
	for (const {category, name, types = [], isDisabled = false} of extensions) {
		node.message(9, entry => entry.string(1, name).string(2, category).bool(5, isDisabled).strings(6, types));
	}
	return node.finish();
}

const ns = 'envoy.extensions.filters';
/** What stock Envoy 1.40 says of itself, as far as these resources ask. */
export const stockExtensions: readonly ListedExtension[] = [
	{category: 'envoy.filters.http', name: 'envoy.router'},
	{category: 'envoy.filters.http', name: 'envoy.filters.http.router', types: [`${ns}.http.router.v3.Router`]},
	{category: 'envoy.filters.http', name: 'envoy.filters.http.fault', types: [`${ns}.http.fault.v3.HTTPFault`]},
	{
		category: 'envoy.filters.http',
		name: 'envoy.filters.http.set_filter_state',
		types: [`${ns}.http.set_filter_state.v3.Config`],
	},
	{
		category: 'envoy.filters.network',
		name: 'envoy.filters.network.tcp_proxy',
		types: [`${ns}.network.tcp_proxy.v3.TcpProxy`],
	},
	{
		category: 'envoy.filters.network',
		name: 'envoy.filters.network.set_filter_state',
		types: [`${ns}.network.set_filter_state.v3.Config`],
	},
	{
		category: 'envoy.filters.network',
		name: 'envoy.filters.network.http_connection_manager',
		types: [`${ns}.network.http_connection_manager.v3.HttpConnectionManager`],
	},
	{category: 'filter_state.object', name: 'envoy.network.application_protocols'},
	{category: 'filter_state.object', name: 'envoy.hashable_string'},
];

/** What Istio's build has beside that. */
export const istioExtensions: readonly ListedExtension[] = [
	...stockExtensions,
	{
		category: 'envoy.filters.upstream_network',
		name: 'istio.metadata_exchange',
		types: ['envoy.tcp.metadataexchange.config.MetadataExchange'],
	},
	{
		category: 'envoy.filters.network',
		name: 'istio.metadata_exchange',
		types: ['envoy.tcp.metadataexchange.config.MetadataExchange'],
	},
	{category: 'envoy.filters.network', name: 'istio.stats', types: ['stats.PluginConfig']},
	{category: 'envoy.filters.http', name: 'istio.metadata_exchange', types: ['io.istio.http.peer_metadata.Config']},
	{category: 'envoy.filters.http', name: 'istio.stats', types: ['stats.PluginConfig']},
	{
		category: 'envoy.filters.http',
		name: 'istio.alpn',
		types: ['istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig'],
	},
	{category: 'filter_state.object', name: 'istio.hashable_string'},
];
