// An SDS server as SPIRE's agent has one; what it answers is in the test's hands.
import {Server, ServerCredentials, type ServerDuplexStream} from '@grpc/grpc-js';
import type {ExecutionContext} from 'ava';
import {FieldReader, FieldWriter} from '../../src/proto/wire.ts';

export const secretType = 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret';

export interface SdsRequest {
	readonly version: string;
	readonly nodeId: string;
	readonly names: readonly string[];
	readonly typeUrl: string;
	readonly nonce: string;
	readonly error: string | undefined;
}

/** An SDS server on a socket, as SPIRE has one; what it answers is in the test's hands. */
export async function startSdsServer(t: ExecutionContext, socketPath: string) {
	const requests: SdsRequest[] = [];
	const streams: ServerDuplexStream<Buffer, Buffer>[] = [];
	const server = new Server();
	const passThrough = (buffer: Buffer) => buffer;
	server.register(
		'/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets',
		(stream: ServerDuplexStream<Buffer, Buffer>) => {
			streams.push(stream);
			stream.on('data', (buffer: Buffer) => requests.push(parseRequest(buffer)));
			stream.on('error', () => {});
		},
		passThrough,
		passThrough,
		'bidi',
	);
	await new Promise<void>((resolve, reject) => {
		server.bindAsync(`unix:${socketPath}`, ServerCredentials.createInsecure(), error =>
			error ? reject(error) : resolve(),
		);
	});
	t.teardown(() => server.forceShutdown());
	return {
		requests,
		streams,
		send: (answer: Buffer) => streams.at(-1)!.write(answer),
		stop: () => server.forceShutdown(),
	};
}

function parseRequest(buffer: Buffer): SdsRequest {
	const request = {
		version: '',
		nodeId: '',
		names: [] as string[],
		typeUrl: '',
		nonce: '',
		error: undefined as string | undefined,
	};
	const reader = new FieldReader(buffer);
	while (reader.next()) {
		if (reader.number === 1) request.version = reader.string();
		if (reader.number === 2) request.nodeId = firstString(reader.message(), 1);
		if (reader.number === 3) request.names.push(reader.string());
		if (reader.number === 4) request.typeUrl = reader.string();
		if (reader.number === 5) request.nonce = reader.string();
		if (reader.number === 6) request.error = firstString(reader.message(), 2);
	}
	return request;
}

function firstString(reader: FieldReader, number: number): string {
	while (reader.next()) if (reader.number === number) return reader.string();
	return '';
}

export function renderUpdate(version: string, secrets: readonly FieldWriter[]): Buffer {
	const writer = new FieldWriter().string(1, version);
	for (const secret of secrets) writer.message(2, any => any.string(1, secretType).append(2, secret));
	return writer.string(4, secretType).string(5, `nonce-${version}`).finish();
}

const inline = (text: string) => (source: FieldWriter) => void source.string(2, text);

export function certificateSecret({chain, key}: {chain: string; key: string}): FieldWriter {
	return new FieldWriter()
		.string(1, 'default')
		.message(2, tls => tls.message(1, inline(chain)).message(2, inline(key)));
}

export function rootsSecret(roots: string): FieldWriter {
	return new FieldWriter().string(1, 'ROOTCA').message(4, context => context.message(1, inline(roots)));
}
