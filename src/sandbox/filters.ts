import type {Message} from './envoy-types.ts';
import type {Protocol} from './registry.ts';

/** Pieces that every listener and cluster is made of, shaped as istiod 1.31 sends them to a sidecar. */
const google = 'type.googleapis.com/';
const envoy = `${google}envoy.`;

/** `{'@type': …}` of an Envoy type named without its `envoy.` prefix. */
export const any = (type: string, fields: Message = {}): Message => ({'@type': envoy + type, ...fields});

export const seconds = (count: number): Message => (count === 0 ? {} : {seconds: count});
export const uint = (value: number): Message => ({value});

/** `google.protobuf.Struct` from plain data. */
export function struct(fields: Readonly<Record<string, unknown>>): Message {
	return {fields: Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, structValue(value)]))};
}

function structValue(value: unknown): Message {
	if (typeof value === 'string') return {stringValue: value};
	if (typeof value === 'boolean') return {boolValue: value};
	if (typeof value === 'number') return {numberValue: value};
	if (Array.isArray(value)) return {listValue: {values: value.map(structValue)}};
	return {structValue: struct(value as Record<string, unknown>)};
}

const typedStruct = (type: string, value: Record<string, unknown>): Message => ({
	'@type': `${google}udpa.type.v1.TypedStruct`,
	type_url: google + type,
	value: struct(value),
});

/** What only Istio's build of Envoy knows; a relay in front of stock Envoy has to take these out. */
export const istioNetworkMetadataExchange: Message = {
	name: 'istio.metadata_exchange',
	typed_config: typedStruct('envoy.tcp.metadataexchange.config.MetadataExchange', {
		enable_discovery: true,
		protocol: 'istio-peer-exchange',
	}),
};

export const istioStats: Message = {name: 'istio.stats', typed_config: {'@type': `${google}stats.PluginConfig`}};

function istioHttpMetadataExchange(direction: Direction): Message {
	const side = direction === 'inbound' ? 'downstream' : 'upstream';
	return {
		name: 'istio.metadata_exchange',
		typed_config: typedStruct('io.istio.http.peer_metadata.Config', {
			[`${side}_discovery`]: [{istio_headers: {}}, {workload_discovery: {}}],
			[`${side}_propagation`]: [{istio_headers: {}}],
		}),
	};
}

const istioAlpn: Message = {
	name: 'istio.alpn',
	typed_config: {
		'@type': `${google}istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`,
		alpn_override: [
			{alpn_override: ['istio-http/1.0', 'istio', 'http/1.0']},
			{upstream_protocol: 'HTTP11', alpn_override: ['istio-http/1.1', 'istio', 'http/1.1']},
			{upstream_protocol: 'HTTP2', alpn_override: ['istio-h2', 'istio', 'h2']},
		],
	},
};

export type Direction = 'inbound' | 'outbound';

/** What differs between proxies in the pieces below. */
export interface Flavour {
	/** Emit the Istio-only filters and the ALPN that goes with them. */
	readonly hasIstioExtensions: boolean;
	readonly namespace: string;
	readonly canonicalName: string;
	readonly clusterId: string;
	readonly trustDomain: string;
}

export const adsSource: Message = {ads: {}, initial_fetch_timeout: {}, resource_api_version: 'V3'};

/** Certificates come from the agent: state-of-the-world SDS over the static cluster `sds-grpc`, waited for without limit. */
function sdsSecret(name: 'default' | 'ROOTCA'): Message {
	return {
		name,
		sds_config: {
			api_config_source: {
				api_type: 'GRPC',
				grpc_services: [{envoy_grpc: {cluster_name: 'sds-grpc'}}],
				set_node_on_first_message_only: true,
				transport_api_version: 'V3',
			},
			initial_fetch_timeout: {},
			resource_api_version: 'V3',
		},
	};
}

function commonTlsContext(alpn: readonly string[], names: readonly Message[], ciphers?: readonly string[]): Message {
	return {
		tls_params: {
			tls_minimum_protocol_version: 'TLSv1_2',
			tls_maximum_protocol_version: 'TLSv1_3',
			...(ciphers ? {cipher_suites: ciphers} : {}),
		},
		alpn_protocols: alpn,
		tls_certificate_sds_secret_configs: [sdsSecret('default')],
		combined_validation_context: {
			default_validation_context: {match_subject_alt_names: names},
			validation_context_sds_secret_config: sdsSecret('ROOTCA'),
		},
	};
}

const serverCiphers = [
	'ECDHE-ECDSA-AES256-GCM-SHA384',
	'ECDHE-RSA-AES256-GCM-SHA384',
	'ECDHE-ECDSA-AES128-GCM-SHA256',
	'ECDHE-RSA-AES128-GCM-SHA256',
	'AES256-GCM-SHA384',
	'AES128-GCM-SHA256',
];

/** Mutual TLS at the server: any workload of the trust domain. */
export function downstreamTls(kind: 'http' | 'tcp', {hasIstioExtensions, trustDomain}: Flavour): Message {
	const alpn = ['h2', 'http/1.1'];
	if (kind === 'tcp' && hasIstioExtensions) alpn.unshift('istio-peer-exchange');
	const names = [{prefix: `spiffe://${trustDomain}/`}];
	return {
		name: 'envoy.transport_sockets.tls',
		typed_config: any('extensions.transport_sockets.tls.v3.DownstreamTlsContext', {
			common_tls_context: commonTlsContext(alpn, names, serverCiphers),
			require_client_certificate: {value: true},
		}),
	};
}

export interface UpstreamTls {
	readonly sni: string;
	/** SPIFFE IDs that may answer. */
	readonly identities: readonly string[];
	readonly protocol: Protocol;
}

export function upstreamTls({sni, identities, protocol}: UpstreamTls, {hasIstioExtensions}: Flavour): Message {
	const alpn = [...(hasIstioExtensions ? ['istio-peer-exchange'] : []), 'istio', ...(isHttp2(protocol) ? ['h2'] : [])];
	return {
		name: 'envoy.transport_sockets.tls',
		typed_config: any('extensions.transport_sockets.tls.v3.UpstreamTlsContext', {
			common_tls_context: commonTlsContext(
				alpn,
				identities.map(exact => ({exact})),
			),
			sni,
		}),
	};
}

export const rawBuffer: Message = {
	name: 'envoy.transport_sockets.raw_buffer',
	typed_config: any('extensions.transport_sockets.raw_buffer.v3.RawBuffer'),
};

export const isHttp2 = (protocol: Protocol): boolean => protocol === 'http2' || protocol === 'grpc';

/** Network filters that end in a TCP proxy. */
export function tcpFilters(direction: Direction, cluster: string, {hasIstioExtensions}: Flavour): Message[] {
	const istio = direction === 'inbound' ? [istioNetworkMetadataExchange, istioStats] : [istioStats];
	const proxy = any('extensions.filters.network.tcp_proxy.v3.TcpProxy', {stat_prefix: cluster, cluster});
	return [...(hasIstioExtensions ? istio : []), {name: 'envoy.filters.network.tcp_proxy', typed_config: proxy}];
}

/** Network filters that end in an HTTP connection manager; `fields` holds its route and prefix. */
export function httpFilters(direction: Direction, fields: Message, flavour: Flavour): Message[] {
	const isInbound = direction === 'inbound';
	const istio = (...filters: Message[]): Message[] => (flavour.hasIstioExtensions ? filters : []);
	const manager = any('extensions.filters.network.http_connection_manager.v3.HttpConnectionManager', {
		...fields,
		http_filters: [
			...istio(istioHttpMetadataExchange(direction)),
			{
				name: 'envoy.filters.http.grpc_stats',
				typed_config: any('extensions.filters.http.grpc_stats.v3.FilterConfig', {
					emit_filter_state: true,
					stats_for_all_methods: {},
				}),
			},
			...(isInbound ? [] : istio(istioAlpn)),
			{name: 'envoy.filters.http.fault', typed_config: any('extensions.filters.http.fault.v3.HTTPFault')},
			{name: 'envoy.filters.http.cors', typed_config: any('extensions.filters.http.cors.v3.Cors')},
			...istio(istioStats),
			{name: 'envoy.filters.http.router', typed_config: any('extensions.filters.http.router.v3.Router')},
		],
		tracing: tracing(flavour),
		use_remote_address: {},
		// The application learns both SPIFFE IDs from x-forwarded-client-cert: `By` is us, `URI` is the caller.
		...(isInbound
			? {
					server_name: 'istio-envoy',
					forward_client_cert_details: 'APPEND_FORWARD',
					set_current_client_cert_details: {subject: {value: true}, dns: true, uri: true},
				}
			: {}),
		proxy_100_continue: true,
		upgrade_configs: [{upgrade_type: 'websocket'}],
		stream_idle_timeout: {},
		normalize_path: {value: true},
		request_id_extension: {
			typed_config: any('extensions.request_id.uuid.v3.UuidRequestIdConfig', {
				use_request_id_for_trace_sampling: {value: true},
			}),
		},
		path_with_escaped_slashes_action: 'KEEP_UNCHANGED',
	});
	const filter = {name: 'envoy.filters.network.http_connection_manager', typed_config: manager};
	return isInbound ? [...istio(istioNetworkMetadataExchange), filter] : [filter];
}

function tracing({namespace, canonicalName, clusterId}: Flavour): Message {
	const literals = {
		canonical_revision: 'latest',
		canonical_service: canonicalName,
		cluster_id: clusterId,
		mesh_id: 'unknown',
		namespace,
	};
	return {
		client_sampling: {value: 100},
		random_sampling: {value: 1},
		overall_sampling: {value: 100},
		custom_tags: [
			...['allow', 'deny'].flatMap(effect => [
				dryRunTag(`${effect}_policy.name`, `istio_dry_run_${effect}_shadow_effective_policy_id`),
				dryRunTag(`${effect}_policy.result`, `istio_dry_run_${effect}_shadow_engine_result`),
			]),
			...Object.entries(literals).map(([name, value]) => ({tag: `istio.${name}`, literal: {value}})),
		],
	};
}

function dryRunTag(name: string, key: string): Message {
	return {
		tag: `istio.authorization.dry_run.${name}`,
		metadata: {kind: {request: {}}, metadata_key: {key: 'envoy.filters.http.rbac', path: [{key}]}},
	};
}
