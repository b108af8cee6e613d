import test from 'ava';
import {type KnownExtensions, parseNodeExtensions} from '../../../src/relay/extensions.ts';
import {createRewriter, type Removal} from '../../../src/relay/rewrite.ts';
import {decodeMessage, encodeMessage} from '../../support/envoy-protos.ts';
import {
	any,
	clusterType,
	connectionManager,
	downstreamTls,
	fault,
	foreign,
	httpAlpn,
	httpMetadata,
	httpStats,
	istioExtensions,
	type Json,
	type ListedExtension,
	listenerType,
	meshCluster,
	nodeWith,
	outboundListener,
	packCluster,
	packListener,
	root,
	router,
	stockExtensions,
	tcpMetadata,
	tcpProxy,
	tcpStats,
	typedStruct,
	upstreamTls,
} from '../../support/istio-resources.ts';

const google = 'type.googleapis.com/';
const stock = parseNodeExtensions(nodeWith(stockExtensions));

const alpnRepair = {
	name: 'onramp.alpn',
	typed_config: any('envoy.extensions.filters.http.set_filter_state.v3.Config', {
		on_request_headers: [
			{
				object_key: 'envoy.network.application_protocols',
				format_string: {
					text_format_source: {
						inline_string:
							"%CEL(has(xds.cluster_metadata.filter_metadata.istio.alpn_override) ? '' : (request.protocol == 'HTTP/2' ? 'istio-h2' : 'istio-http/1.1'))%",
					},
				},
				shared_with_upstream: 'ONCE',
				skip_if_empty: true,
			},
		],
	}),
};

interface Outcome {
	readonly out: Buffer;
	readonly removals: Removal[];
	readonly malformed: string[];
}

function rewriteBytes(kind: string, bytes: Buffer, known: KnownExtensions | undefined): Outcome {
	const removals: Removal[] = [];
	const malformed: string[] = [];
	const rewriter = createRewriter(
		known,
		removal => removals.push(removal),
		(resource, reason) => malformed.push(`${resource}: ${reason}`),
	);
	return {out: rewriter.rewrite(google + kind, 'r', bytes), removals, malformed};
}

const rewriteListener = (listener: Json, known: KnownExtensions | undefined = stock) =>
	rewriteBytes(listenerType, packListener(listener), known);
const rewriteCluster = (cluster: Json, known: KnownExtensions | undefined = stock) =>
	rewriteBytes(clusterType, packCluster(cluster), known);
const names = ({removals}: Outcome) => removals.map(({category, name}) => `${category} ${name}`);

function withExtensions(...more: ListedExtension[]): KnownExtensions | undefined {
	return parseNodeExtensions(nodeWith([...stockExtensions, ...more]));
}

test('node extensions › are unsaid, not empty, when the node lists none', t => {
	t.is(parseNodeExtensions(nodeWith([])), undefined);
});

test('node extensions › know types by category, with or without the type URL prefix', t => {
	const known = parseNodeExtensions(
		nodeWith([{category: 'envoy.filters.http', name: 'a', types: ['x.A', `${google}x.B`]}]),
	)!;
	t.true(known.hasType('envoy.filters.http', 'x.A'));
	t.true(known.hasType('envoy.filters.http', 'x.B'));
	t.false(known.hasType('envoy.filters.network', 'x.A'));
	t.true(known.hasName('envoy.filters.http', 'a'));
});

test('node extensions › do not count a factory that is disabled', t => {
	const known = parseNodeExtensions(
		nodeWith([{category: 'envoy.filters.http', name: 'a', types: ['x.A'], isDisabled: true}, ...stockExtensions]),
	)!;
	t.false(known.hasType('envoy.filters.http', 'x.A'));
});

test('node extensions › give the same fingerprint in any order and another for another set', t => {
	const reversed = parseNodeExtensions(nodeWith([...stockExtensions].reverse()));
	t.is(reversed?.fingerprint, stock?.fingerprint);
	t.not(withExtensions({category: 'envoy.filters.http', name: 'n', types: ['n.N']})?.fingerprint, stock?.fingerprint);
});

test('rewriter › takes the Istio-only HTTP filters out and puts the ALPN repair before the router', t => {
	const outcome = rewriteListener(outboundListener([httpMetadata, httpAlpn, fault, httpStats, router]));
	t.deepEqual(outcome.out, packListener(outboundListener([fault, alpnRepair, router])));
	t.deepEqual(names(outcome), [
		'envoy.filters.http istio.metadata_exchange',
		'envoy.filters.http istio.alpn',
		'envoy.filters.http istio.stats',
	]);
	t.is(outcome.removals[0]?.type, 'io.istio.http.peer_metadata.Config');
	t.is(outcome.removals[0]?.resource, 'r');
	t.true(outcome.removals.every(({lost}) => lost !== ''));
});

test('rewriter › does the same with the built-in list when Envoy does not list its extensions', t => {
	const listener = outboundListener([httpMetadata, httpAlpn, fault, httpStats, router]);
	t.deepEqual(
		rewriteBytes(listenerType, packListener(listener), undefined).out,
		packListener(outboundListener([fault, alpnRepair, router])),
	);
});

for (const [what, more] of [
	['by direction', {traffic_direction: 'INBOUND'}],
	['by name', {name: 'virtualInbound', traffic_direction: 'UNSPECIFIED'}],
] as const) {
	test(`rewriter › puts no ALPN repair into an inbound listener, known ${what}`, t => {
		const {out} = rewriteListener(outboundListener([httpAlpn, router], more));
		t.deepEqual(out, packListener(outboundListener([router], more)));
	});
}

test('rewriter › puts no ALPN repair where no istio.alpn stood', t => {
	const {out} = rewriteListener(outboundListener([httpStats, router]));
	t.deepEqual(out, packListener(outboundListener([router])));
});

test('rewriter › puts no ALPN repair into an Envoy that could not load it, and says what is lost', t => {
	const known = parseNodeExtensions(
		nodeWith(stockExtensions.filter(({name}) => name !== 'envoy.network.application_protocols')),
	);
	const outcome = rewriteListener(outboundListener([httpAlpn, router]), known);
	t.deepEqual(outcome.out, packListener(outboundListener([router])));
	t.regex(outcome.removals[0]!.lost, /arrive as TCP/);
});

test('rewriter › repairs each of several HTTP connection managers, the default chain and upgrades included', t => {
	const listener = (filters: Json[], upgradeFilters: Json[]) =>
		outboundListener([], {
			filter_chains: [
				{
					filters: [
						connectionManager(filters, {upgrade_configs: [{upgrade_type: 'websocket', filters: upgradeFilters}]}),
					],
				},
			],
			default_filter_chain: {filters: [connectionManager(filters)]},
		});
	const {out} = rewriteListener(listener([httpAlpn, fault, router], [httpStats, httpAlpn, router]));
	t.deepEqual(out, packListener(listener([fault, alpnRepair, router], [alpnRepair, router])));
});

test('rewriter › takes network filters out of every chain and keeps the rest in order', t => {
	const listener = (before: Json[]) => ({
		name: 'virtualOutbound',
		filter_chains: [{filters: [...before, tcpProxy]}],
		default_filter_chain: {filters: [...before, tcpProxy]},
	});
	const outcome = rewriteListener(listener([tcpMetadata, tcpStats]));
	t.deepEqual(outcome.out, packListener(listener([])));
	t.is(outcome.removals.length, 4);
});

test('rewriter › looks inside both kinds of TypedStruct and never removes for the wrapper', t => {
	const xds = {name: 'm', typed_config: typedStruct('io.istio.http.peer_metadata.Config', 'xds.type.v3')};
	const wrappedFault = {name: 'f', typed_config: typedStruct('envoy.extensions.filters.http.fault.v3.HTTPFault')};
	const empty = {name: 'e', typed_config: any('udpa.type.v1.TypedStruct', {})};
	const {out} = rewriteListener(outboundListener([xds, wrappedFault, empty, router]));
	t.deepEqual(out, packListener(outboundListener([wrappedFault, empty, router])));
});

test('rewriter › looks inside a filter with a matcher', t => {
	const matched = (inner: Json) => ({
		name: 'matched',
		typed_config: any('envoy.extensions.common.matching.v3.ExtensionWithMatcher', {extension_config: inner}),
	});
	const {out} = rewriteListener(outboundListener([matched(httpMetadata), matched(httpStats), matched(fault), router]));
	t.deepEqual(out, packListener(outboundListener([matched(fault), router])));
});

for (const type of [
	'istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig',
	'io.istio.http.connect_authority.Config',
	'istio.jwt.v1.Config',
	'example.org.authz.Config',
	'example.org.harmless.Config',
]) {
	test(`rewriter › leaves ${type} in, for Envoy to refuse where people can see it`, t => {
		const listener = packListener(outboundListener([{name: 'x', typed_config: foreign(type)}, router]));
		t.is(rewriteBytes(listenerType, listener, stock).out, listener);
	});
}

test('rewriter › takes out another extension of an Istio package, and a foreign one only when it is marked optional', t => {
	const baggage = {name: 'istio.baggage', typed_config: foreign('io.istio.http.connect_baggage.Config')};
	const optional = {name: 'x', typed_config: foreign('example.org.harmless.Config'), is_optional: true};
	const outcome = rewriteListener(outboundListener([baggage, optional, router]));
	t.deepEqual(outcome.out, packListener(outboundListener([router])));
	t.is(outcome.removals.length, 2);
});

test('rewriter › keeps what this Envoy says it has, whatever its name', t => {
	const known = withExtensions({category: 'envoy.filters.http', name: 'istio.stats', types: ['stats.PluginConfig']});
	const {out} = rewriteListener(outboundListener([httpStats, httpMetadata, router]), known);
	t.deepEqual(out, packListener(outboundListener([httpStats, router])));
});

test('rewriter › keeps a filter that comes by discovery unless none of its types can be loaded', t => {
	const discovered = (...types: string[]) => ({
		name: 'd',
		config_discovery: {config_source: {ads: {}}, type_urls: types.map(type => google + type)},
	});
	const wasm = discovered('envoy.extensions.filters.http.wasm.v3.Wasm');
	const mixed = discovered('stats.PluginConfig', 'envoy.extensions.filters.http.fault.v3.HTTPFault');
	const {out} = rewriteListener(
		outboundListener([wasm, mixed, discovered(), discovered('stats.PluginConfig'), router]),
	);
	t.deepEqual(out, packListener(outboundListener([wasm, mixed, discovered(), router])));
});

test('rewriter › never takes the last filter of a chain', t => {
	const network = packListener({name: 'l', filter_chains: [{filters: [tcpStats]}]});
	t.is(rewriteBytes(listenerType, network, stock).out, network);
	const {out} = rewriteListener(outboundListener([httpMetadata, httpStats]));
	t.deepEqual(out, packListener(outboundListener([httpStats])));
});

test('rewriter › takes listener filters and access loggers of an Istio package out', t => {
	const own = {name: 'istio.x', typed_config: foreign('io.istio.x.Config')};
	const file = {
		name: 'envoy.access_loggers.file',
		typed_config: foreign('envoy.extensions.access_loggers.file.v3.FileAccessLog'),
	};
	const listener = (entries: Json[]) =>
		outboundListener([], {
			filter_chains: [{filters: [connectionManager([router], {access_log: entries})]}],
			listener_filters: entries,
			access_log: entries,
		});
	const outcome = rewriteListener(listener([own, file]));
	t.deepEqual(outcome.out, packListener(listener([file])));
	t.deepEqual(names(outcome).sort(), [
		'envoy.access_loggers istio.x',
		'envoy.access_loggers istio.x',
		'envoy.filters.listener istio.x',
	]);
});

test('rewriter › stops offering istio-peer-exchange to clients and leaves the chain match alone', t => {
	const listener = (alpn: string[], filters: Json[]) => ({
		name: 'virtualInbound',
		filter_chains: [
			{
				filter_chain_match: {application_protocols: ['istio', 'istio-peer-exchange'], transport_protocol: 'tls'},
				filters,
				transport_socket: downstreamTls(alpn),
			},
		],
	});
	const outcome = rewriteListener(listener(['istio-peer-exchange', 'h2', 'http/1.1'], [tcpProxy]));
	t.deepEqual(outcome.out, packListener(listener(['h2', 'http/1.1'], [tcpProxy])));
	t.deepEqual(names(outcome), ['alpn istio-peer-exchange']);
});

test('rewriter › cleans a cluster: filter, matched sockets, own socket, wrapped socket', t => {
	const wrap = (socket: Json) => ({
		name: 'p',
		typed_config: any('envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport', {
			transport_socket: socket,
		}),
	});
	const cluster = (alpn: string[], filters: Json[]) => ({
		...meshCluster('outbound|80||a'),
		filters,
		transport_socket: upstreamTls(alpn),
		transport_socket_matches: [
			{name: 'tlsMode-istio', transport_socket: upstreamTls(alpn)},
			{name: 'wrapped', transport_socket: wrap(upstreamTls(alpn))},
			{name: 'tlsMode-disabled', transport_socket: {name: 'envoy.transport_sockets.raw_buffer'}},
		],
	});
	const kept = {name: 'stock', typed_config: foreign('envoy.extensions.filters.network.upstream.v3.X')};
	const outcome = rewriteCluster(cluster(['istio-peer-exchange', 'istio', 'h2'], [tcpMetadata, kept]));
	t.deepEqual(outcome.out, packCluster(cluster(['istio', 'h2'], [kept])));
	t.is(outcome.removals.length, 4);
});

test('rewriter › takes upstream HTTP filters out of a cluster but never the codec', t => {
	const codec = {name: 'c', typed_config: foreign('envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec')};
	const cluster = (http_filters: Json[]) => ({
		name: 'c',
		typed_extension_protocol_options: {
			x: any('envoy.extensions.upstreams.http.v3.HttpProtocolOptions', {
				explicit_http_config: {http_protocol_options: {}},
				http_filters,
			}),
		},
	});
	const {out} = rewriteCluster(cluster([httpMetadata, codec]));
	t.deepEqual(out, packCluster(cluster([codec])));
});

test('rewriter › keeps istio-peer-exchange where Envoy has the metadata filter', t => {
	const known = withExtensions({
		category: 'envoy.filters.upstream_network',
		name: 'istio.metadata_exchange',
		types: ['envoy.tcp.metadataexchange.config.MetadataExchange'],
	});
	const cluster = packCluster(meshCluster('c'));
	t.is(rewriteBytes(clusterType, cluster, known).out, cluster);
});

test("rewriter › names Envoy's own object factory for Istio's", t => {
	const value = (factory_key: string) => ({
		object_key: 'istio.hashable_string', // a key of this name is nobody's factory
		factory_key,
		format_string: {text_format_source: {inline_string: 'x'}},
	});
	const listener = (key: string) => ({
		name: 'connect_terminate',
		filter_chains: [
			{
				filters: [
					{
						name: 'n',
						typed_config: any('envoy.extensions.filters.network.set_filter_state.v3.Config', {
							on_new_connection: [value(key), value('envoy.string')],
						}),
					},
					connectionManager([
						{
							name: 'h',
							typed_config: any('envoy.extensions.filters.http.set_filter_state.v3.Config', {
								on_request_headers: [value(key)],
							}),
						},
						router,
					]),
				],
			},
		],
	});
	const outcome = rewriteListener(listener('istio.hashable_string'));
	t.deepEqual(outcome.out, packListener(listener('envoy.hashable_string')));
	t.is(outcome.removals.length, 2);
});

test("rewriter › passes everything through for Istio's own Envoy, with an empty profile", t => {
	const known = parseNodeExtensions(nodeWith(istioExtensions));
	const listener = packListener(outboundListener([httpMetadata, httpAlpn, httpStats, router]));
	t.is(rewriteBytes(listenerType, listener, known).out, listener);
	t.is(createRewriter(known, () => {}).profile, '');
});

test('rewriter › has a profile that is the same for the same Envoy and differs otherwise', t => {
	const profile = (known: KnownExtensions | undefined) => createRewriter(known, () => {}).profile;
	t.is(profile(stock), profile(parseNodeExtensions(nodeWith(stockExtensions))));
	t.not(profile(stock), profile(undefined));
	t.regex(profile(undefined), /^[0-9a-f]{12}$/);
});

test('rewriter › gives the very same buffer back when a resource is clean or of another type', t => {
	const listener = packListener(outboundListener([fault, router]));
	t.is(rewriteBytes(listenerType, listener, stock).out, listener);
	const cluster = packCluster(meshCluster('c', {isMeshed: false}));
	t.is(rewriteBytes(clusterType, cluster, stock).out, cluster);
	const dirty = packListener(outboundListener([httpStats, router]));
	t.is(rewriteBytes('envoy.config.route.v3.RouteConfiguration', dirty, stock).out, dirty);
	const {value} = any(listenerType, outboundListener([httpStats, router]));
	const disguised = encodeMessage(root, 'google.protobuf.Any', {
		type_url: `${google}envoy.service.discovery.v3.Resource`,
		value,
	});
	t.is(rewriteBytes(listenerType, disguised, stock).out, disguised);
});

test('rewriter › keeps fields it has never heard of, in place', t => {
	const unknownField = Buffer.from([0xfa, 0xff, 0x03, 0x03, 1, 2, 3]); // number 8191
	const cluster = Buffer.concat([unknownField, encodeMessage(root, clusterType, meshCluster('c')), unknownField]);
	const expected = Buffer.concat([
		unknownField,
		encodeMessage(root, clusterType, {...meshCluster('c', {isMeshed: false})}),
		unknownField,
	]);
	const pack = (value: Buffer) => encodeMessage(root, 'google.protobuf.Any', {type_url: google + clusterType, value});
	t.deepEqual(rewriteBytes(clusterType, pack(cluster), stock).out, pack(expected));
});

test('rewriter › still reads as the message it was', t => {
	const {out} = rewriteCluster(meshCluster('outbound|80||a'));
	const {value} = decodeMessage(root, 'google.protobuf.Any', out) as {value: Buffer};
	t.deepEqual(
		decodeMessage(root, clusterType, value),
		decodeMessage(
			root,
			clusterType,
			encodeMessage(root, clusterType, meshCluster('outbound|80||a', {isMeshed: false})),
		),
	);
});

test('rewriter › forwards a malformed body as it is, reports it, and reports no removal for it', t => {
	const whole = encodeMessage(root, clusterType, meshCluster('c'));
	const body = Buffer.concat([whole, Buffer.from([0x0b])]);
	const bytes = encodeMessage(root, 'google.protobuf.Any', {type_url: google + clusterType, value: body});
	const outcome = rewriteBytes(clusterType, bytes, stock);
	t.is(outcome.out, bytes);
	t.is(outcome.malformed.length, 1);
	t.deepEqual(outcome.removals, []);
});
