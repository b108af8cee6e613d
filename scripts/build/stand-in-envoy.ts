// Stands for Envoy while the code caches are made: opens the admin socket, asks for configuration and secrets as Envoy
// does, likes whatever comes, and says that it is live. Started by the agent with Envoy's command line.
import {readFileSync, rmSync} from 'node:fs';
import {createServer} from 'node:http';
import {Client, type ClientDuplexStream, credentials} from '@grpc/grpc-js';
import {typeUrl} from '../../src/proto/types.ts';
import {FieldReader, FieldWriter} from '../../src/proto/wire.ts';
import {encodeDeltaRequest, encodeSotwRequest, parseDeltaResponse} from '../../src/relay/envelope.ts';

interface Bootstrap {
	readonly admin: {readonly address: {readonly pipe: {readonly path: string}}};
	readonly node: {readonly id: string; readonly cluster: string};
	readonly static_resources: {readonly clusters: readonly {readonly name: string; readonly load_assignment: unknown}[]};
}

const bootstrapPath = process.argv[process.argv.indexOf('-c') + 1]!;
const bootstrap = JSON.parse(readFileSync(bootstrapPath, 'utf8')) as Bootstrap;
const xds = bootstrap.static_resources.clusters.find(({name}) => name === 'xds-grpc')!;
const xdsPath = /"path":"([^"]+)"/.exec(JSON.stringify(xds.load_assignment))![1]!;
const taken = new Set<string>();

// Envoy, too, replaces a socket that was left behind.
rmSync(bootstrap.admin.address.pipe.path, {force: true});
const admin = createServer((request, response) => {
	const isLive = taken.has(typeUrl.cluster) && taken.has(typeUrl.listener);
	if (request.url === '/server_info') {
		const state = isLive ? 'LIVE' : 'INITIALIZING';
		response.end(
			JSON.stringify({version: 'x/1.40.0/Clean', state, command_line_options: {config_path: bootstrapPath}}),
		);
	} else if (request.url?.startsWith('/stats')) {
		response.end('cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n');
	} else if (request.url === '/quitquitquit') response.end('OK\n', () => process.exit(0));
	else response.end(isLive ? 'LIVE\n' : 'OK\n');
}).listen(bootstrap.admin.address.pipe.path);
process.on('SIGTERM', () => process.exit(0));
admin.unref();

const asIs = (value: Buffer): Buffer => value;
const node = new FieldWriter()
	.string(1, bootstrap.node.id)
	.string(2, bootstrap.node.cluster)
	.message(9, extension => extension.string(1, 'envoy.filters.http.router').string(2, 'envoy.filters.http'))
	.finish();

const service = '/envoy.service.discovery.v3.AggregatedDiscoveryService';
const client = new Client(`unix:${xdsPath}`, credentials.createInsecure(), {'grpc.initial_reconnect_backoff_ms': 100});
const ads = open(`${service}/DeltaAggregatedResources`);
ads.on('data', (message: Buffer) => {
	const {typeUrl: type, nonce, resources} = parseDeltaResponse(message);
	ads.write(encodeDeltaRequest({typeUrl: type, nonce}));
	if (type === typeUrl.cluster) {
		const names = resources.names.filter(name => /^(outbound|inbound)\|/.test(name));
		ads.write(encodeDeltaRequest({typeUrl: typeUrl.endpoint, subscribe: names}));
		ads.write(encodeDeltaRequest({typeUrl: typeUrl.listener}));
	}
	taken.add(type);
});
ads.write(encodeDeltaRequest({node, typeUrl: typeUrl.cluster}));

for (const name of ['default', 'ROOTCA']) {
	const sds = open('/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets');
	sds.on('data', (message: Buffer) => {
		for (const field = new FieldReader(message); field.next(); ) {
			if (field.number !== 5) continue;
			sds.write(encodeSotwRequest({typeUrl: typeUrl.secret, names: [name], nonce: field.string(), version: '1'}));
		}
	});
	sds.write(encodeSotwRequest({node, typeUrl: typeUrl.secret, names: [name]}));
}

function open(path: string): ClientDuplexStream<Buffer, Buffer> {
	const call = client.makeBidiStreamRequest(path, asIs, asIs);
	call.on('error', error => {
		console.error(`${path}: ${error.message}`);
		process.exit(1);
	});
	return call;
}
