import http2 from 'node:http2';

/** gRPC status codes that the sandbox uses. */
export const grpcCode = {
	ok: 0,
	unknown: 2,
	invalid_argument: 3,
	permission_denied: 7,
	resource_exhausted: 8,
	failed_precondition: 9,
	unimplemented: 12,
	internal: 13,
	unavailable: 14,
	unauthenticated: 16,
} as const;
export type GrpcCode = keyof typeof grpcCode;

export interface GrpcStatus {
	readonly code: GrpcCode;
	readonly message: string;
}

const resetDelayMs = 50;

/** The answering half of a call: headers before the first message, status in the trailers. */
export class CallWriter {
	readonly #stream: http2.ServerHttp2Stream;
	readonly #run: (work: () => void) => void;
	#isEnded = false;

	constructor(stream: http2.ServerHttp2Stream, run: (work: () => void) => void) {
		this.#stream = stream;
		this.#run = run;
	}

	send(message: Uint8Array): void {
		this.#run(() => {
			if (this.#stream.destroyed || this.#isEnded) return;
			if (!this.#stream.headersSent) this.#stream.respond(responseHeaders, {waitForTrailers: true});
			const head = Buffer.allocUnsafe(5);
			head[0] = 0;
			head.writeUInt32BE(message.length, 1);
			this.#stream.write(head);
			this.#stream.write(message);
		});
	}

	end(status: GrpcStatus = {code: 'ok', message: ''}): void {
		this.#run(() => {
			if (this.#stream.destroyed || this.#isEnded) return;
			this.#isEnded = true;
			const trailers = renderStatus(status);
			if (!this.#stream.headersSent) {
				this.#stream.respond({...responseHeaders, ...trailers}, {endStream: true});
				this.#closeSoon();
				return;
			}
			this.#stream.once('wantTrailers', () => {
				this.#stream.sendTrailers(trailers);
				this.#closeSoon();
			});
			this.#stream.end();
		});
	}

	/** A client that has not ended its side is told to stop, but not before the status is out: a reset overtakes it. */
	#closeSoon(): void {
		setTimeout(() => {
			if (!this.#stream.destroyed) this.#stream.close(http2.constants.NGHTTP2_NO_ERROR);
		}, resetDelayMs).unref();
	}
}

const responseHeaders = {':status': 200, 'content-type': 'application/grpc'};

function renderStatus({code, message}: GrpcStatus): Record<string, string> {
	// gRPC asks for percent-encoding of everything outside printable ASCII, and of % itself.
	const text = message.replace(/[^\x20-\x24\x26-\x7e]/gu, character => encodeURIComponent(character));
	return {'grpc-status': String(grpcCode[code]), ...(text === '' ? {} : {'grpc-message': text})};
}

/** Cuts a byte stream into gRPC messages. */
export class FrameReader {
	readonly #onMessage: (message: Buffer) => void;
	#pending: Buffer[] = [];
	#length = 0;
	#wanted = 5;

	constructor(onMessage: (message: Buffer) => void) {
		this.#onMessage = onMessage;
	}

	/** @returns false for what is not an uncompressed gRPC frame */
	push(chunk: Buffer): boolean {
		this.#pending.push(chunk);
		this.#length += chunk.length;
		while (this.#length >= this.#wanted) {
			const all = this.#pending.length === 1 ? this.#pending[0]! : Buffer.concat(this.#pending, this.#length);
			if (all[0] !== 0) return false;
			const size = all.readUInt32BE(1) + 5;
			if (size > all.length) {
				this.#pending = [all];
				this.#wanted = size;
				return true;
			}
			this.#onMessage(all.subarray(5, size));
			const rest = all.subarray(size);
			this.#pending = rest.length === 0 ? [] : [rest];
			this.#length = rest.length;
			this.#wanted = 5;
		}
		return true;
	}
}
