import type {Message} from './envoy-types.ts';
import {
	adsSource,
	any,
	type Flavour,
	httpFilters,
	isHttp2,
	istioNetworkMetadataExchange,
	rawBuffer,
	seconds,
	struct,
	tcpFilters,
	uint,
	upstreamTls,
} from './filters.ts';
import type {Service, StaticEndpoint} from './registry.ts';

/** `outbound|PORT||HOST`. */
export const outboundName = ({port, host}: {port: number; host: string}): string => `outbound|${port}||${host}`;

export const unlimited: Message = {
	thresholds: [
		{
			max_connections: uint(4294967295),
			max_pending_requests: uint(4294967295),
			max_requests: uint(4294967295),
			max_retries: uint(4294967295),
		},
	],
};

const httpOptions = 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions';

export const http2Options: Message = {
	[httpOptions]: any(httpOptions.slice(6), {explicit_http_config: {http2_protocol_options: {}}}),
};

export const passthroughOptions: Message = {
	[httpOptions]: any(httpOptions.slice(6), {
		common_http_protocol_options: {idle_timeout: seconds(300)},
		use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}},
	}),
};

/** Which services a cluster is for; Istio's telemetry reads it. */
export function serviceMetadata(services: readonly Service[]): Message {
	const named = services.map(({host, namespace}) => ({host, name: host, namespace}));
	return {filter_metadata: {istio: struct({services: named})}};
}

export interface Endpoint extends StaticEndpoint {
	/** `NAME;NAMESPACE;CANONICAL NAME;REVISION;CLUSTER`, as Istio's telemetry wants it. */
	readonly workload: string;
}

export function renderOutboundCluster(service: Service, endpoints: readonly Endpoint[], flavour: Flavour): Message {
	const {host, port, protocol, revision} = service;
	const name = outboundName(service);
	const identities = [...new Set(endpoints.flatMap(({spiffeId}) => spiffeId ?? []))].sort();
	const tls = {sni: `outbound_.${port}_._.${host}`, identities, protocol};
	return {
		name,
		type: 'EDS',
		eds_cluster_config: {eds_config: adsSource, service_name: name},
		// A touched service differs from itself by a few nanoseconds of patience.
		connect_timeout: {seconds: 10, ...(revision === 0 ? {} : {nanos: revision})},
		lb_policy: 'LEAST_REQUEST',
		circuit_breakers: unlimited,
		metadata: serviceMetadata([service]),
		common_lb_config: {healthy_panic_threshold: {}},
		alt_stat_name: `${name};`,
		...(isHttp2(protocol) ? {typed_extension_protocol_options: http2Options} : {}),
		...clusterFilters(flavour),
		transport_socket_matches: [
			{name: 'tlsMode-istio', match: struct({tlsMode: 'istio'}), transport_socket: upstreamTls(tls, flavour)},
			{name: 'tlsMode-disabled', match: {}, transport_socket: rawBuffer},
		],
	};
}

function clusterFilters({hasIstioExtensions}: Flavour): Message {
	return hasIstioExtensions ? {filters: [istioNetworkMetadataExchange]} : {};
}

export function renderFixedOutboundClusters(flavour: Flavour): Message[] {
	return [
		{name: 'BlackHoleCluster', type: 'STATIC', connect_timeout: seconds(10), alt_stat_name: 'BlackHoleCluster;'},
		{
			name: 'PassthroughCluster',
			type: 'ORIGINAL_DST',
			connect_timeout: seconds(10),
			lb_policy: 'CLUSTER_PROVIDED',
			circuit_breakers: unlimited,
			alt_stat_name: 'PassthroughCluster;',
			typed_extension_protocol_options: passthroughOptions,
			...clusterFilters(flavour),
		},
	];
}

export function renderAssignment(name: string, endpoints: readonly Endpoint[]): Message {
	if (endpoints.length === 0) return {cluster_name: name};
	const lbEndpoints = endpoints.map(({address, port, spiffeId, workload}) => ({
		endpoint: {address: {socket_address: {address, port_value: port}}},
		metadata: {
			filter_metadata: {
				...(spiffeId ? {'envoy.transport_socket_match': struct({tlsMode: 'istio'})} : {}),
				istio: struct({workload}),
			},
		},
		load_balancing_weight: uint(1),
	}));
	const locality = {locality: {}, lb_endpoints: lbEndpoints, load_balancing_weight: uint(endpoints.length)};
	return {cluster_name: name, endpoints: [locality]};
}

export interface ListenerAddress {
	readonly address: string;
	readonly port: number;
	/** Really bound, as under interception NONE; otherwise only `virtualOutbound` hands connections to it. */
	readonly isBound: boolean;
}

function outboundListener({address, port, isBound}: ListenerAddress, fields: Message): Message {
	return {
		name: `${address}_${port}`,
		address: {socket_address: {address, port_value: port}},
		...fields,
		listener_filters_timeout: {},
		traffic_direction: 'OUTBOUND',
		continue_on_listener_filters_timeout: true,
		...(isBound ? {} : {bind_to_port: {}}),
	};
}

/** One for each HTTP port; what is not HTTP passes through. */
export function renderHttpListener(at: ListenerAddress, routeName: string, flavour: Flavour): Message {
	const manager = {
		stat_prefix: `outbound_${at.address}_${at.port};`,
		rds: {config_source: adsSource, route_config_name: routeName},
	};
	return outboundListener(at, {
		filter_chains: [
			{
				filter_chain_match: {transport_protocol: 'raw_buffer', application_protocols: ['http/1.1', 'h2c']},
				filters: httpFilters('outbound', manager, flavour),
				transport_socket_connect_timeout: seconds(15),
			},
		],
		listener_filters: [
			{
				name: 'envoy.filters.listener.http_inspector',
				typed_config: any('extensions.filters.listener.http_inspector.v3.HttpInspector'),
			},
		],
		default_filter_chain: {
			filter_chain_match: {},
			filters: tcpFilters('outbound', 'PassthroughCluster', flavour),
			name: 'PassthroughFilterChain',
		},
	});
}

export function renderTcpListener(at: ListenerAddress, cluster: string, flavour: Flavour): Message {
	const filters = tcpFilters('outbound', cluster, flavour);
	return outboundListener(at, {filter_chains: [{filters, transport_socket_connect_timeout: seconds(15)}]});
}

/** Takes what the kernel redirects and hands it to the listener of the original destination. */
export function renderVirtualOutbound(port: number, isDual: boolean, flavour: Flavour): Message {
	return {
		name: 'virtualOutbound',
		address: {socket_address: {address: '0.0.0.0', port_value: port}},
		...(isDual ? {additional_addresses: [{address: {socket_address: {address: '::', port_value: port}}}]} : {}),
		filter_chains: [
			{
				filter_chain_match: {destination_port: uint(port)},
				filters: tcpFilters('outbound', 'BlackHoleCluster', flavour),
				name: 'virtualOutbound-blackhole',
			},
			{filters: tcpFilters('outbound', 'PassthroughCluster', flavour), name: 'virtualOutbound-catchall-tcp'},
		],
		use_original_dst: {value: true},
		traffic_direction: 'OUTBOUND',
		max_connections_to_accept_per_socket_event: uint(1),
	};
}

const retryPolicy: Message = {
	retry_on: 'connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes',
	num_retries: uint(2),
	retry_host_predicate: [
		{
			name: 'envoy.retry_host_predicates.previous_hosts',
			typed_config: any('extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate'),
		},
	],
	host_selection_retry_max_attempts: 5,
};

/** @param domains - `['*']` for a listener that serves this service alone */
export function renderVirtualHost(service: Service, domains: readonly string[]): Message {
	const name = `${service.host}:${service.port}`;
	const route = {cluster: outboundName(service), timeout: {}, retry_policy: retryPolicy, max_grpc_timeout: {}};
	return {
		name,
		domains,
		routes: [{match: {prefix: '/'}, route, decorator: {operation: `${name}/*`}, name: 'default'}],
		include_request_attempt_count: true,
	};
}

/** Every name a client in the proxy's namespace may call a service by. */
export function domainsOf({host, namespace, address}: Service, proxyNamespace: string): string[] {
	const [first, second, ...rest] = host.split('.');
	const isCluster = second === namespace && rest.join('.') === 'svc.cluster.local';
	const short = isCluster
		? [...(namespace === proxyNamespace ? [first!] : []), `${first}.${namespace}.svc`, `${first}.${namespace}`]
		: [];
	return [host, `${host}.`, ...short, address];
}

export const allowAnyHost: Message = {
	name: 'allow_any',
	domains: ['*'],
	routes: [
		{
			match: {prefix: '/'},
			route: {cluster: 'PassthroughCluster', timeout: {}, max_grpc_timeout: {}},
			name: 'allow_any',
		},
	],
	include_request_attempt_count: true,
};

/** A route configuration without its virtual hosts, which are encoded one by one. */
export function renderRouteShell(name: string): Message {
	return {
		name,
		validate_clusters: {},
		max_direct_response_body_size_bytes: uint(1048576),
		ignore_port_in_host_matching: true,
	};
}
