import {get} from 'node:http';
import {Client, credentials} from '@grpc/grpc-js';
import test from 'ava';
import {typeUrl} from '../../../src/proto/types.ts';
import {encodeSotwRequest, parseSotwResponse} from '../../../src/relay/envelope.ts';
import {partsOf, startMesh} from '../../support/mesh.ts';

const services = 5000;
/** Counted, not timed: the control plane, Envoy and this test share the machine, and the first two are busy too. */
const fewestAnswers = 5;

/** Asks again and again, one after the other, until told to stop; how many answers there were. */
function askOn(ask: () => Promise<unknown>): {stop(): Promise<number>} {
	let answers = 0;
	let isStopping = false;
	const run = async () => {
		while (!isStopping) {
			await ask();
			if (!isStopping) answers++;
		}
		return answers;
	};
	const finished = run();
	return {
		stop: () => {
			isStopping = true;
			return finished;
		},
	};
}

function askLive(port: number): Promise<void> {
	return new Promise((resolve, reject) => {
		get({host: '127.0.0.1', port, path: '/livez'}, response => {
			response.resume();
			response.once('end', () => (response.statusCode === 200 ? resolve() : reject(new Error('not live'))));
		}).once('error', reject);
	});
}

const pass = (bytes: Buffer): Buffer => bytes;

/** A new stream each time, as Envoy opens one for each listener's certificate. */
function askSecret(client: Client, node: Buffer): Promise<void> {
	return new Promise((resolve, reject) => {
		const path = '/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets';
		const stream = client.makeBidiStreamRequest<Buffer, Buffer>(path, pass, pass);
		stream.once('data', (message: Buffer) => {
			const {names} = parseSotwResponse(message).resources;
			stream.cancel();
			if (names.includes('default')) resolve();
			else reject(new Error(`got ${names}`));
		});
		stream.on('error', reject);
		stream.write(encodeSotwRequest({node, typeUrl: typeUrl.secret, names: ['default']}));
	});
}

test('large push › of 5,000 services reaches Envoy whole, while status and SDS go on answering', async t => {
	const mesh = await startMesh(t, {workloads: {vm: 'vm'}});
	const vm = mesh.workload('vm');
	const client = new Client(`unix:${vm.runDir}/xds.sock`, credentials.createInsecure());
	t.teardown(() => client.close());
	const {pushes, acks} = mesh.sandbox;
	const clustersSent = new Promise<void>(resolve => {
		t.teardown(pushes.on(push => push.typeUrl === typeUrl.cluster && push.resources >= services && resolve()));
	});
	const isTaken = new Promise<void>(resolve => {
		let nonce = '';
		t.teardown(
			pushes.on(push => {
				if (push.typeUrl === typeUrl.endpoint && push.resources >= services) ({nonce} = push);
			}),
		);
		t.teardown(acks.on(ack => ack.nonce === nonce && resolve()));
	});
	mesh.sandbox.addServices(services);
	await clustersSent;
	const asking = [askOn(() => askLive(vm.ports.status)), askOn(() => askSecret(client, Buffer.from([0x0a, 1, 0x78])))];
	await isTaken;
	const [live, secrets] = await Promise.all(asking.map(each => each.stop()));
	t.log(`answers meanwhile: ${live} of status, ${secrets} of SDS`);
	t.true(live! >= fewestAnswers, `${live} answers of status`);
	t.true(secrets! >= fewestAnswers, `${secrets} answers of SDS`);
	const {relay} = partsOf(await vm.status());
	t.deepEqual(relay.rejections, []);
	t.true(relay.resources['EDS']! >= services);
	await vm.untilReady();
});
