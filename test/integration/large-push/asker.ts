// Asks an agent for its health and for a certificate, again and again, in a process of its own: the test is the control
// plane, and busy itself. Port and socket come in argv; it says when it has begun, and at any message what it has seen.
import {get} from 'node:http';
import {Client, credentials} from '@grpc/grpc-js';
import {typeUrl} from '../../../src/proto/types.ts';
import {encodeSotwRequest, parseSotwResponse} from '../../../src/relay/envelope.ts';

export interface Answers {
	count: number;
	/** Between two answers, or the last one and now. */
	longestGapMs: number;
	lastMs: number;
}

function note(answers: Answers): void {
	answers.longestGapMs = Math.max(answers.longestGapMs, Math.round(performance.now() - answers.lastMs));
}

/** One question after the other, without end. */
async function askOn(ask: () => Promise<void>, answers: Answers): Promise<never> {
	for (;;) {
		await ask();
		note(answers);
		answers.lastMs = performance.now();
		answers.count++;
	}
}

const [port, socketPath] = process.argv.slice(2) as [string, string];

function askLive(): Promise<void> {
	return new Promise((resolve, reject) => {
		get({host: '127.0.0.1', port, path: '/livez'}, response => {
			response.resume();
			response.once('end', () => (response.statusCode === 200 ? resolve() : reject(new Error('not live'))));
		}).once('error', reject);
	});
}

const client = new Client(`unix:${socketPath}`, credentials.createInsecure());
const pass = (bytes: Buffer): Buffer => bytes;
const node = Buffer.from([0x0a, 1, 0x78]);

/** A new stream each time, as Envoy opens one for each listener's certificate. */
function askSecret(): Promise<void> {
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

await askLive();
await askSecret();
const begin = (): Answers => ({count: 0, longestGapMs: 0, lastMs: performance.now()});
const answers = {status: begin(), SDS: begin()};
process.on('message', () => {
	for (const each of Object.values(answers)) note(each);
	process.send!(answers);
});
process.on('disconnect', () => process.exit());
// An answer that fails ends this process, and with it the test.
void askOn(askLive, answers.status);
void askOn(askSecret, answers.SDS);
process.send!('begun');
