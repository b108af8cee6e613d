import type {Message} from './envoy-types.ts';
import {any, downstreamTls, type Flavour, httpFilters, isHttp2, seconds, tcpFilters, uint} from './filters.ts';
import {http2Options, passthroughOptions, serviceMetadata, unlimited} from './outbound.ts';
import type {Service} from './registry.ts';

export type MtlsMode = 'strict' | 'permissive';

export const inboundName = (targetPort: number): string => `inbound|${targetPort}||`;

/** Listener filters and Envoy's own connections to the application use this source, which capture rules let pass. */
const appSource: Message = {source_address: {address: '127.0.0.6', port_value: 0}};

/**
 * The application behind a target port.
 * @param isBound - the listener binds the port itself, so there is no original destination to follow: go to localhost
 */
export function renderInboundCluster(service: Service, isBound: boolean): Message {
	const name = inboundName(service.targetPort);
	const http2 = isHttp2(service.protocol) ? {typed_extension_protocol_options: http2Options} : {};
	const common = {
		name,
		connect_timeout: seconds(10),
		circuit_breakers: unlimited,
		metadata: serviceMetadata([service]),
		common_lb_config: {},
		alt_stat_name: `${name};`,
		...http2,
	};
	if (!isBound) {
		return {
			...common,
			type: 'ORIGINAL_DST',
			lb_policy: 'CLUSTER_PROVIDED',
			cleanup_interval: seconds(9_223_372_035),
			upstream_bind_config: appSource,
		};
	}
	const address = {socket_address: {address: '127.0.0.1', port_value: service.targetPort}};
	const assignment = {cluster_name: name, endpoints: [{lb_endpoints: [{endpoint: {address}}]}]};
	return {...common, type: 'STATIC', load_assignment: assignment};
}

export const inboundPassthroughCluster: Message = {
	name: 'InboundPassthroughCluster',
	type: 'ORIGINAL_DST',
	connect_timeout: seconds(10),
	lb_policy: 'CLUSTER_PROVIDED',
	circuit_breakers: unlimited,
	upstream_bind_config: appSource,
	alt_stat_name: 'PassthroughCluster;',
	typed_extension_protocol_options: passthroughOptions,
};

const mtlsAlpn = ['istio', 'istio-peer-exchange', 'istio-http/1.0', 'istio-http/1.1', 'istio-h2'];
const mtlsHttpAlpn = ['istio-http/1.0', 'istio-http/1.1', 'istio-h2'];
const mtlsTcpAlpn = ['istio-peer-exchange', 'istio'];

interface Match {
	readonly kind: 'http' | 'tcp';
	readonly transport: 'tls' | 'raw_buffer';
	readonly alpn?: readonly string[];
	/** Terminate mutual TLS here; TLS without it is the application's own and passes through. */
	readonly isTerminated: boolean;
}

/** Which connections istiod gives a port that declares its protocol. */
function portMatches(kind: 'http' | 'tcp', mode: MtlsMode): Match[] {
	if (mode === 'strict') return [{kind, transport: 'tls', isTerminated: true}];
	return [
		{kind, transport: 'tls', alpn: mtlsAlpn, isTerminated: true},
		...(kind === 'tcp' ? [{kind, transport: 'tls', isTerminated: false} as const] : []),
		{kind, transport: 'raw_buffer', isTerminated: false},
	];
}

/** … and a port nobody declared. */
function catchAllMatches(mode: MtlsMode): Match[] {
	const http: Match = {kind: 'http', transport: 'tls', alpn: mtlsHttpAlpn, isTerminated: true};
	if (mode === 'strict') return [http, {kind: 'tcp', transport: 'tls', isTerminated: true}];
	return [
		http,
		{kind: 'http', transport: 'raw_buffer', alpn: ['http/1.1', 'h2c'], isTerminated: false},
		{kind: 'tcp', transport: 'tls', alpn: mtlsTcpAlpn, isTerminated: true},
		{kind: 'tcp', transport: 'raw_buffer', isTerminated: false},
		{kind: 'tcp', transport: 'tls', isTerminated: false},
	];
}

function renderChain(match: Match, fields: Message, filters: readonly Message[], flavour: Flavour): Message {
	const {destination_port: destination, ...rest} = fields;
	return {
		filter_chain_match: {
			...(destination ? {destination_port: destination} : {}),
			transport_protocol: match.transport,
			...(match.alpn ? {application_protocols: match.alpn} : {}),
		},
		filters,
		...(match.isTerminated ? {transport_socket: downstreamTls(match.kind, flavour)} : {}),
		...rest,
	};
}

function inboundRoute(name: string, cluster: string, operation: string, port: number, canRetry: boolean): Message {
	const route = {
		cluster,
		timeout: {},
		...(canRetry ? {retry_policy: {retry_on: 'reset-before-request', num_retries: uint(2)}} : {}),
		max_stream_duration: {max_stream_duration: {}, grpc_timeout_header_max: {}},
	};
	return {
		name,
		virtual_hosts: [
			{
				name: `inbound|http|${port}`,
				domains: ['*'],
				routes: [{match: {prefix: '/'}, route, decorator: {operation: `${operation}/*`}, name: 'default'}],
			},
		],
		validate_clusters: {},
	};
}

function serviceChains(service: Service, mode: MtlsMode, isBound: boolean, flavour: Flavour): Message[] {
	const {targetPort, protocol, host, port} = service;
	const cluster = inboundName(targetPort);
	const kind = protocol === 'tcp' ? 'tcp' : 'http';
	const manager = {
		stat_prefix: `inbound_0.0.0.0_${targetPort};`,
		route_config: inboundRoute(cluster, cluster, `${host}:${port}`, port, protocol !== 'grpc'),
		...(isHttp2(protocol) ? {http2_protocol_options: {}} : {}),
	};
	const filters = kind === 'tcp' ? tcpFilters('inbound', cluster, flavour) : httpFilters('inbound', manager, flavour);
	const fields = {name: `0.0.0.0_${targetPort}`, ...(isBound ? {} : {destination_port: uint(targetPort)})};
	return portMatches(kind, mode).map(match => renderChain(match, fields, filters, flavour));
}

function catchAllChains(port: number, mode: MtlsMode, flavour: Flavour): Message[] {
	const cluster = 'InboundPassthroughCluster';
	const http = httpFilters(
		'inbound',
		{stat_prefix: `${cluster};`, route_config: inboundRoute(cluster, cluster, ':0', 0, true)},
		flavour,
	);
	const tcp = tcpFilters('inbound', cluster, flavour);
	return [
		{
			filter_chain_match: {destination_port: uint(port)},
			filters: tcpFilters('inbound', 'BlackHoleCluster', flavour),
			name: 'virtualInbound-blackhole',
		},
		...catchAllMatches(mode).map(match => {
			const name = match.kind === 'http' ? 'virtualInbound-catchall-http' : 'virtualInbound';
			return renderChain(match, {name}, match.kind === 'http' ? http : tcp, flavour);
		}),
	];
}

const portRule = (port: number): Message => ({destination_port_range: {start: port, end: port + 1}});

function tlsInspector(exceptPort?: number): Message {
	return {
		name: 'envoy.filters.listener.tls_inspector',
		typed_config: any('extensions.filters.listener.tls_inspector.v3.TlsInspector', {
			initial_read_buffer_size: uint(512),
		}),
		...(exceptPort === undefined ? {} : {filter_disabled: portRule(exceptPort)}),
	};
}

function httpInspector(exceptPorts: readonly Message[]): Message {
	return {
		name: 'envoy.filters.listener.http_inspector',
		typed_config: any('extensions.filters.listener.http_inspector.v3.HttpInspector'),
		filter_disabled: exceptPorts.length === 1 ? exceptPorts[0] : {or_match: {rules: exceptPorts}},
	};
}

/** The one listener for everything the kernel redirects to us. */
export function renderVirtualInbound(
	port: number,
	services: readonly Service[],
	mode: MtlsMode,
	flavour: Flavour,
): Message {
	const rules = [...services.map(service => service.targetPort), port].map(portRule);
	return {
		name: 'virtualInbound',
		address: {socket_address: {address: '0.0.0.0', port_value: port}},
		filter_chains: [
			...catchAllChains(port, mode, flavour),
			...services.flatMap(service => serviceChains(service, mode, false, flavour)),
		],
		listener_filters: [
			{
				name: 'envoy.filters.listener.original_dst',
				typed_config: any('extensions.filters.listener.original_dst.v3.OriginalDst'),
			},
			tlsInspector(port),
			...(mode === 'strict' ? [] : [httpInspector(rules)]), // only plaintext chains ask whether it is HTTP
		],
		listener_filters_timeout: {},
		traffic_direction: 'INBOUND',
		continue_on_listener_filters_timeout: true,
		max_connections_to_accept_per_socket_event: uint(1),
	};
}

/** Without interception each port has a listener of its own, bound for real. */
export function renderBoundInbound(
	service: Service,
	at: {readonly address: string; readonly port: number},
	mode: MtlsMode,
	flavour: Flavour,
): Message {
	return {
		name: `${at.address}_${at.port}`,
		address: {socket_address: {address: at.address, port_value: at.port}},
		filter_chains: serviceChains(service, mode, true, flavour),
		listener_filters: [tlsInspector()],
		listener_filters_timeout: {},
		traffic_direction: 'INBOUND',
		continue_on_listener_filters_timeout: true,
	};
}
