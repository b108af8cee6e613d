import type {ServiceError} from '@grpc/grpc-js';
import type {CertificateRequest} from '../identity/index.ts';
import {FieldReader, FieldWriter} from '../proto/wire.ts';
import type {Connection} from './connection.ts';

const method = '/istio.v1.auth.IstioCertificateService/CreateCertificate';

/** How long one call may take: the CA signs in milliseconds, a busy one in seconds. Upstream sets no limit and can hang for ever. */
const callTimeoutMs = 30_000;

/** One CreateCertificate call. Rejects with the gRPC ServiceError as it came. */
export async function createCertificate(
	{client, metadata}: Connection,
	request: CertificateRequest,
	signal: AbortSignal,
): Promise<readonly string[]> {
	signal.throwIfAborted();
	return new Promise((resolve, reject) => {
		const call = client.makeUnaryRequest(
			method,
			encodeRequest,
			decodeResponse,
			request,
			metadata,
			{deadline: Date.now() + callTimeoutMs},
			(error: ServiceError | null, chain?: readonly string[]) => {
				signal.removeEventListener('abort', onAbort);
				if (error) reject(error);
				else resolve(chain ?? []);
			},
		);
		const onAbort = () => call.cancel();
		signal.addEventListener('abort', onAbort, {once: true});
	});
}

/** csr 1, validity_duration **3** (seconds; 2 is unused), metadata 4 {CertSigner}. */
function encodeRequest({csrPem, lifetimeMs, certSigner}: CertificateRequest): Buffer {
	return new FieldWriter()
		.string(1, csrPem)
		.uint(3, Math.round(lifetimeMs / 1000))
		.message(4, struct =>
			struct.message(1, entry =>
				entry.string(1, 'CertSigner').message(2, value => value.bytes(3, Buffer.from(certSigner, 'utf8'))),
			),
		)
		.finish();
}

/** cert_chain 1, repeated. */
function decodeResponse(message: Buffer): readonly string[] {
	const chain: string[] = [];
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number === 1) chain.push(field.string());
	}
	return chain;
}
