import test from 'ava';
import fc from 'fast-check';
import {FieldWriter} from '../../../src/proto/wire.ts';
import {parseNodeExtensions} from '../../../src/relay/extensions.ts';
import {createRewriter} from '../../../src/relay/rewrite.ts';
import {decodeMessage} from '../../support/envoy-protos.ts';
import {
	clusterType,
	connectionManager,
	downstreamTls,
	fault,
	httpAlpn,
	httpMetadata,
	httpStats,
	type Json,
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
} from '../../support/istio-resources.ts';

const google = 'type.googleapis.com/';
const {rewrite} = createRewriter(parseNodeExtensions(nodeWith(stockExtensions)), () => {});

const listener = packListener(
	outboundListener([], {
		filter_chains: [
			{filters: [tcpMetadata, tcpStats, tcpProxy], transport_socket: downstreamTls(['istio-peer-exchange', 'istio'])},
			{filters: [connectionManager([httpMetadata, httpAlpn, fault, httpStats, router])]},
		],
	}),
);
const cluster = packCluster(meshCluster('outbound|80||a'));

/**
 * Every repair (about 330 bytes) pays with an `istio.alpn` entry, whose type alone is 60 bytes; lengths of enclosing
 * messages may grow by a byte or two. So what comes out is never more than eight times what went in.
 */
function isBounded(input: Buffer, output: Buffer): boolean {
	return output.length <= input.length * 8 + 16;
}

function rewritesSafely(bytes: Buffer): boolean {
	return [listenerType, clusterType].every(type => isBounded(bytes, rewrite(google + type, 'fuzz', bytes)));
}

const mutation = fc.record({
	at: fc.nat(4000),
	value: fc.integer({min: 0, max: 255}),
	kind: fc.constantFrom('set', 'cut', 'insert', 'end'),
});

function mutate(seed: Buffer, mutations: readonly {at: number; value: number; kind: string}[]): Buffer {
	let bytes = Buffer.from(seed);
	for (const {at, value, kind} of mutations) {
		const place = at % (bytes.length + 1);
		if (kind === 'set' && place < bytes.length) bytes[place] = value;
		else if (kind === 'cut')
			bytes = Buffer.concat([bytes.subarray(0, place), bytes.subarray(place + 1 + (value % 16))]);
		else if (kind === 'insert')
			bytes = Buffer.concat([bytes.subarray(0, place), Buffer.from([value]), bytes.subarray(place)]);
		else if (kind === 'end') bytes = bytes.subarray(0, place);
	}
	return bytes;
}

test('rewriter › survives any bytes', t => {
	fc.assert(
		fc.property(fc.uint8Array({maxLength: 300}), body => {
			const bytes = Buffer.from(body);
			const packed = (type: string) =>
				new FieldWriter()
					.string(1, google + type)
					.bytes(2, bytes)
					.finish();
			return rewritesSafely(bytes) && rewritesSafely(packed(listenerType)) && rewritesSafely(packed(clusterType));
		}),
		{numRuns: 2000},
	);
	t.pass();
});

test('rewriter › survives damaged copies of real resources', t => {
	fc.assert(
		fc.property(
			fc.constantFrom(listener, cluster),
			fc.array(mutation, {minLength: 1, maxLength: 4}),
			(seed, mutations) => rewritesSafely(mutate(seed, mutations)),
		),
		{numRuns: 5000},
	);
	t.pass();
});

test('rewriter › survives real resources cut off at every byte', t => {
	for (const seed of [listener, cluster]) {
		for (let length = 0; length < seed.length; length++) t.true(rewritesSafely(seed.subarray(0, length)));
	}
});

test('node extensions › survive damage with a value or a WireError', t => {
	const node = nodeWith(stockExtensions);
	fc.assert(
		fc.property(fc.array(mutation, {minLength: 1, maxLength: 4}), mutations => {
			try {
				parseNodeExtensions(mutate(node, mutations));
			} catch (error) {
				return (error as Error).name === 'WireError';
			}
			return true;
		}),
		{numRuns: 2000},
	);
	t.pass();
});

const httpFilter = fc.constantFrom<Json>(httpMetadata, httpAlpn, httpStats, fault);
const networkFilter = fc.constantFrom<Json>(tcpMetadata, tcpStats, {name: 'keep'});

test('rewriter › leaves the filters it keeps in order, the terminal one last, and rewriting again changes nothing', t => {
	const istioNames: unknown[] = [httpMetadata.name, httpAlpn.name, httpStats.name];
	fc.assert(
		fc.property(fc.array(httpFilter, {maxLength: 8}), fc.array(networkFilter, {maxLength: 5}), (http, network) => {
			const bytes = packListener({
				name: 'l',
				filter_chains: [{filters: [...network, tcpProxy]}, {filters: [connectionManager([...http, router])]}],
			});
			const out = rewrite(google + listenerType, 'l', bytes);
			const kept = http.map(({name}) => name).filter(name => !istioNames.includes(name));
			const repair = http.includes(httpAlpn) ? ['onramp.alpn'] : [];
			t.deepEqual(httpNames(out), [...kept, ...repair, router.name]);
			t.is(rewrite(google + listenerType, 'l', out), out);
		}),
		{numRuns: 300},
	);
});

function httpNames(packed: Buffer): unknown[] {
	const {value} = decodeMessage(root, 'google.protobuf.Any', packed) as {value: Buffer};
	const {filter_chains} = decodeMessage(root, listenerType, value) as {
		filter_chains: {filters: {typed_config: {value: Buffer}}[]}[];
	};
	const manager = decodeMessage(
		root,
		'envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager',
		filter_chains[1]!.filters[0]!.typed_config.value,
	) as {http_filters: {name: string}[]};
	return manager.http_filters.map(({name}) => name);
}
