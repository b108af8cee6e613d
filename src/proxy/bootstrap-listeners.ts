type Json = Record<string, unknown>;

const type = (name: string) => `type.googleapis.com/${name}`;

/** 15090: the admin's Prometheus page and nothing else of the admin. Only the statistics in use: see envoy's sizes. */
export function renderMetricsListener(address: string, port: number): Json {
	return listener(address, port, {
		'@type': type('envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager'),
		codec_type: 'AUTO',
		stat_prefix: 'stats',
		route_config: routes([
			{
				// The path is exact, so that no path of a request ever reaches another admin handler.
				match: {path: '/stats/prometheus', headers: [exactly(':method', 'GET')]},
				route: {cluster: 'prometheus_stats', prefix_rewrite: '/stats/prometheus?usedonly', timeout: '30s'},
			},
		]),
		http_filters: [compressor(), router()],
	});
}

/**
 * 15021: readiness for load balancers and people (decision 0002). Envoy itself answers 503 once it is told to fail
 * its health check; otherwise the agent is asked; and while no agent listens (restart, upgrade) Envoy speaks for itself,
 * as traffic does not depend on the agent.
 */
export function renderReadinessListener(address: string, port: number, isAgentAsked: boolean): Json {
	const match = {path: '/healthz/ready', headers: [exactly(':method', 'GET')]};
	return listener(address, port, {
		'@type': type('envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager'),
		codec_type: 'AUTO',
		stat_prefix: 'agent',
		route_config: routes(isAgentAsked ? [{match, route: {cluster: 'agent', timeout: '2s'}}] : []),
		...(isAgentAsked ? {local_reply_config: {mappers: [envoyAlone]}} : {}),
		http_filters: [healthCheck(isAgentAsked), router()],
	});
}

/** `UF`: the connection was refused, so nobody listens. A hung agent is a time-out (`UT`) and stays an error. */
const envoyAlone: Json = {
	filter: {response_flag_filter: {flags: ['UF']}},
	status_code: 200,
	body: {inline_string: 'envoy serves; the agent does not answer\n'},
};

function healthCheck(isPassedThrough: boolean): Json {
	return {
		name: 'envoy.filters.http.health_check',
		typed_config: {
			'@type': type('envoy.extensions.filters.http.health_check.v3.HealthCheck'),
			pass_through_mode: isPassedThrough,
			headers: [exactly(':path', '/healthz/ready')],
		},
	};
}

function listener(address: string, port: number, connectionManager: Json): Json {
	return {
		name: `${address}_${port}`,
		address: {
			socket_address: {address, port_value: port, ...(address === '::' ? {ipv4_compat: true} : {})},
		},
		// Must answer when the machine is overloaded: that is when somebody asks.
		ignore_global_conn_limit: true,
		bypass_overload_manager: true,
		filter_chains: [
			{filters: [{name: 'envoy.filters.network.http_connection_manager', typed_config: connectionManager}]},
		],
	};
}

function routes(entries: readonly Json[]): Json {
	return {virtual_hosts: [{name: 'backend', domains: ['*'], routes: entries}]};
}

function exactly(name: string, value: string): Json {
	return {name, string_match: {exact: value}};
}

/** The page is 1.5 MiB at 2,000 clusters and shrinks to a tenth. */
function compressor(): Json {
	return {
		name: 'envoy.filters.http.compressor',
		typed_config: {
			'@type': type('envoy.extensions.filters.http.compressor.v3.Compressor'),
			compressor_library: {
				name: 'gzip',
				typed_config: {'@type': type('envoy.extensions.compression.gzip.compressor.v3.Gzip')},
			},
		},
	};
}

function router(): Json {
	return {
		name: 'envoy.filters.http.router',
		typed_config: {'@type': type('envoy.extensions.filters.http.router.v3.Router')},
	};
}
