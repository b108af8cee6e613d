import {connect, constants} from 'node:http2';
import {FieldReader, FieldWriter} from '../proto/wire.ts';
import {version} from '../version.ts';
import {dial} from './dial.ts';
import {ProbeFailure} from './failure.ts';

/** grpc.health.v1.HealthCheckResponse.ServingStatus. */
const servingStatus = ['UNKNOWN', 'SERVING', 'NOT_SERVING', 'SERVICE_UNKNOWN'];
const mostAnswerBytes = 64 * 1024;
/** Compressed flag, length. */
const prefixLength = 5;

/** grpc.health.v1.Health/Check without TLS, as Kubernetes asks it; only SERVING is healthy. */
export async function checkGrpc(
	{host, port, service}: {readonly host: string; readonly port: number; readonly service: string},
	signal: AbortSignal,
): Promise<void> {
	const socket = await dial(host, port, signal);
	const session = connect('http://localhost', {createConnection: () => socket});
	const onAbort = () => session.destroy(signal.reason);
	signal.addEventListener('abort', onAbort, {once: true});
	try {
		const {answer, status, message} = await new Promise<Answer>((resolve, reject) => {
			session.once('error', reject);
			session.once('close', () => reject(new ProbeFailure('connection closed without an answer')));
			const stream = session.request({
				[constants.HTTP2_HEADER_METHOD]: 'POST',
				[constants.HTTP2_HEADER_PATH]: '/grpc.health.v1.Health/Check',
				[constants.HTTP2_HEADER_AUTHORITY]: `${host.includes(':') ? `[${host}]` : host}:${port}`,
				'content-type': 'application/grpc',
				te: 'trailers',
				'user-agent': `onramp-probe/${version}`,
			});
			let answer = Buffer.alloc(0);
			let told: Record<string, unknown> = {};
			stream.once('error', reject);
			stream.on('response', headers => {
				told = {...told, ...headers};
			});
			stream.on('trailers', trailers => {
				told = {...told, ...trailers};
			});
			stream.on('data', (chunk: Buffer) => {
				answer = Buffer.concat([answer, chunk]);
				if (answer.length > mostAnswerBytes) reject(new ProbeFailure('answer is too long'));
			});
			stream.once('end', () =>
				// Trailers are told before the end.
				resolve({
					answer,
					status: String(told['grpc-status'] ?? `none, HTTP status ${String(told[':status'])}`),
					message: String(told['grpc-message'] ?? ''),
				}),
			);
			stream.end(frame(new FieldWriter().string(1, service).finish()));
		});
		if (status !== '0') throw new ProbeFailure(`gRPC status ${status}${message && `: ${decode(message)}`}`);
		const serving = readStatus(answer);
		if (serving !== 1) throw new ProbeFailure(`it says ${servingStatus[serving] ?? serving}`);
	} finally {
		signal.removeEventListener('abort', onAbort);
		session.removeAllListeners('error').on('error', () => {}); // What closing it makes it say.
		session.destroy();
		socket.destroy();
	}
}

interface Answer {
	readonly answer: Buffer;
	readonly status: string;
	readonly message: string;
}

function frame(message: Buffer): Buffer {
	const prefix = Buffer.alloc(prefixLength);
	prefix.writeUInt32BE(message.length, 1);
	return Buffer.concat([prefix, message]);
}

/** HealthCheckResponse: status 1; nothing is UNKNOWN. */
function readStatus(answer: Buffer): number {
	if (answer.length < prefixLength || answer[0] !== 0 || answer.length - prefixLength !== answer.readUInt32BE(1))
		throw new ProbeFailure('answer is no gRPC message');
	let status = 0;
	for (const field = new FieldReader(answer.subarray(prefixLength)); field.next(); )
		if (field.number === 1) status = field.uint();
	return status;
}

/** Percent-encoded, by the specification of gRPC over HTTP/2. */
function decode(message: string): string {
	try {
		return decodeURIComponent(message);
	} catch {
		return message;
	}
}
