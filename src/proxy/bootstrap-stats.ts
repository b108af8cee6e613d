import type {ProxyConfig} from '../config/types.ts';

type Json = Record<string, unknown>;

/**
 * What of Envoy's statistics exists at all. A list of what to keep, because all of them cost 28 KiB a cluster; Istio's
 * list first, then what stands in for Istio's own request metrics with a stock Envoy: codes, requests, connections and
 * bytes by service, about a dozen for each cluster that is used.
 */
export function renderStatsConfig(config: Pick<ProxyConfig, 'statsPrefixes' | 'statsSuffixes' | 'statsRegexes'>): Json {
	const patterns = [
		...[...prefixes, ...config.statsPrefixes].map(prefix => ({prefix})),
		...[...suffixes, ...config.statsSuffixes].map(suffix => ({suffix})),
		...parts.map(contains => ({contains})),
		...[...regexes, ...config.statsRegexes].map(regex => ({safe_regex: {regex}})),
	];
	return {
		use_all_default_tags: false,
		stats_tags: statsTags.map(([name, regex]) => ({tag_name: name, regex})),
		stats_matcher: {inclusion_list: {patterns}},
	};
}

/** The readiness gate and the drain read `cluster_manager`, `listener_manager`, `server` and `downstream_rq_active`. */
const prefixes = [
	'reporter=',
	'cluster_manager',
	'listener_manager',
	'server',
	'cluster.xds-grpc',
	'cluster.sds-grpc',
	'wasm',
	'component',
	'istio',
];

const suffixes = [
	'rbac.allowed',
	'rbac.denied',
	'shadow_allowed',
	'shadow_denied',
	'.downstream_cx_active',
	'.upstream_rq_total',
	'.upstream_rq_active',
	'.upstream_rq_timeout',
	'.upstream_rq_pending_overflow',
	'.upstream_cx_total',
	'.upstream_cx_active',
	'.upstream_cx_connect_fail',
	'.upstream_cx_rx_bytes_total',
	'.upstream_cx_tx_bytes_total',
	'.grpc.success',
	'.grpc.failure',
	'.grpc.total',
];

/** Counters by response code; they come into being with the first such response. */
const parts = ['.external.upstream_rq_'];

/** Anchored, so that every other name fails at its first letters: they are tried on each new statistic. */
const regexes = ['vhost\\..*\\.route\\..*', '^http\\..+\\.downstream_rq_(total|active|[1-5]xx)$'];

/** Group 1 is cut out of the name, group 2 is the value. istiod ends cluster and listener names with `;`. */
const statsTags: readonly (readonly [string, string])[] = [
	['cluster_name', '^cluster\\.((.+?);\\.)'],
	['tcp_prefix', '^tcp\\.((.*?)\\.)\\w+?$'],
	['response_code', '(?:^|\\.)(?:up|down)stream_rq(_(\\d{3}))$'],
	['response_code_class', '(?:^|\\.)(?:up|down)stream_rq(_(\\dxx))$'],
	['http_conn_manager_prefix', '^http\\.((.+?)(?:;\\.|\\.))'],
	['listener_address', '^listener\\.((\\d+\\.\\d+\\.\\d+\\.\\d+_\\d+|.+?)(?:;\\.|\\.))'],
];
