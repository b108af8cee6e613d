import {execFile} from 'node:child_process';
import {existsSync} from 'node:fs';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {promisify} from 'node:util';
import test from 'ava';
import {FieldWriter} from '../../../src/proto/wire.ts';
import {parseNodeExtensions} from '../../../src/relay/extensions.ts';
import {createRewriter} from '../../../src/relay/rewrite.ts';
import {decodeMessage} from '../../support/envoy-protos.ts';
import {
	any,
	clusterType,
	connectionManager,
	fault,
	httpAlpn,
	httpMetadata,
	httpStats,
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

/** Put there by scripts/fetch-envoy.ts; a unit test does not fetch it. */
const envoy = fileURLToPath(new URL('../../../.cache/envoy/1.40.0/envoy', import.meta.url));
const withEnvoy = existsSync(envoy) ? test : test.skip;

const google = 'type.googleapis.com/';
const run = promisify(execFile);

const fromAuthority = {
	object_key: 'io.istio.connect_authority',
	factory_key: 'istio.hashable_string',
	format_string: {text_format_source: {inline_string: 'x'}},
};
const listener = packListener(
	outboundListener([], {
		filter_chains: [
			{
				filter_chain_match: {destination_port: {value: 1}},
				filters: [
					tcpMetadata,
					tcpStats,
					{
						name: 'state',
						typed_config: any('envoy.extensions.filters.network.set_filter_state.v3.Config', {
							on_new_connection: [fromAuthority],
						}),
					},
					tcpProxy,
				],
			},
			{
				filters: [
					connectionManager([httpMetadata, httpAlpn, fault, httpStats, router], {
						upgrade_configs: [{upgrade_type: 'websocket', filters: [httpAlpn, router]}],
					}),
				],
			},
		],
	}),
);
const cluster = packCluster({...meshCluster('c'), load_assignment: {cluster_name: 'c'}});

/** Bootstrap: static_resources 2 with listeners 1 and clusters 2. */
function renderBootstrap(packedListener: Buffer, packedCluster: Buffer): Buffer {
	const body = (packed: Buffer) => (decodeMessage(root, 'google.protobuf.Any', packed) as {value: Buffer}).value;
	return new FieldWriter()
		.message(2, resources => resources.bytes(1, body(packedListener)).bytes(2, body(packedCluster)))
		.finish();
}

async function validate(bootstrap: Buffer): Promise<string> {
	const dir = await mkdtemp(join(tmpdir(), 'onramp-rewrite-'));
	try {
		const path = join(dir, 'bootstrap.pb');
		await writeFile(path, bootstrap);
		const {stdout} = await run(envoy, ['--mode', 'validate', '--log-level', 'error', '-c', path]);
		return stdout;
	} catch (error) {
		return (error as {stderr: string}).stderr;
	} finally {
		await rm(dir, {recursive: true});
	}
}

withEnvoy(
	'rewriter › makes stock Envoy load what it refuses as it comes from istiod, ALPN repair included',
	async t => {
		t.regex(await validate(renderBootstrap(listener, cluster)), /Didn't find a registered implementation for 'istio/);
		const {rewrite} = createRewriter(parseNodeExtensions(nodeWith(stockExtensions)), () => {});
		const rewritten = renderBootstrap(
			rewrite(google + listenerType, 'l', listener),
			rewrite(google + clusterType, 'c', cluster),
		);
		t.regex(await validate(rewritten), /OK/);
	},
);
