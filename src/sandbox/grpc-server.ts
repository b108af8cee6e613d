import type {X509Certificate} from 'node:crypto';
import http2 from 'node:http2';
import type {AddressInfo, Socket} from 'node:net';
import tls from 'node:tls';
import {CallWriter, FrameReader, type GrpcStatus} from './grpc-wire.ts';

/** One gRPC call. Messages are whole protobuf messages, without the five-byte frame. */
export interface Call {
	readonly headers: http2.IncomingHttpHeaders;
	readonly peer: string;
	/** The client's leaf; present only when it was verified in the handshake. */
	readonly clientCertificate: X509Certificate | undefined;
	send(message: Uint8Array): void;
	end(status?: GrpcStatus): void;
}

export interface CallHandler {
	onMessage(message: Buffer): void;
	/** The client has sent everything it wants to. */
	onEnd?(): void;
	/** The call is over, whoever ended it. */
	onClose?(): void;
}

export type Method = (call: Call) => CallHandler | undefined;

export interface GrpcServerOptions {
	readonly methods: ReadonlyMap<string, Method>;
	readonly tls: TlsMaterial;
	readonly host: string;
	readonly port: number;
	/** Ping interval towards clients; a client that does not answer within 10 s is cut off. istiod: 30 s. */
	readonly keepaliveMs: number;
	/** Connections are told to go after this long, as istiod's keepaliveMaxServerConnectionAge. */
	readonly maxConnectionAgeMs: number | undefined;
}

export interface TlsMaterial {
	readonly certPem: string;
	readonly keyPem: string;
	/** Who may sign client certificates. */
	readonly rootsPem: string;
}

const windowBytes = 1 << 20;
const pingAnswerMs = 10_000;
/** istiod's grace for calls on a connection past its age. */
const connectionGraceMs = 10_000;

/**
 * A gRPC server on node:http2. It is not grpc-js's: the sandbox needs the client's certificate verified only if one
 * is given (Go's `VerifyClientCertIfGiven`), its own TLS material replaced while running, and faults below the call.
 */
export class GrpcServer {
	readonly #options: GrpcServerOptions;
	readonly #tls: tls.Server;
	readonly #sessions = new Set<http2.ServerHttp2Session>();
	/** Every accepted connection, also one still in its handshake. */
	readonly #sockets = new Set<Socket>();
	/** Work held back while silent, in order; undefined when answering. */
	#held: (() => void)[] | undefined;
	#delayMs = 0;
	/** Handshakes broken because of the client's certificate, with OpenSSL's reason. */
	readonly refusedHandshakes: string[] = [];

	private constructor(options: GrpcServerOptions) {
		this.#options = options;
		const {certPem: cert, keyPem: key, rootsPem: ca} = options.tls;
		this.#tls = tls.createServer(
			{cert, key, ca, requestCert: true, rejectUnauthorized: false, ALPNProtocols: ['h2'], minVersion: 'TLSv1.2'},
			socket => this.#accept(socket),
		);
		this.#tls.on('connection', (socket: Socket) => {
			this.#sockets.add(socket);
			socket.once('close', () => this.#sockets.delete(socket));
		});
		this.#tls.on('tlsClientError', () => {}); // the client's business; it sees the alert
	}

	static async start(options: GrpcServerOptions): Promise<GrpcServer> {
		const server = new GrpcServer(options);
		await new Promise<void>((resolve, reject) => {
			server.#tls.once('error', reject);
			server.#tls.listen(options.port, options.host, resolve);
		});
		return server;
	}

	get port(): number {
		return (this.#tls.address() as AddressInfo).port;
	}

	get connections(): number {
		return this.#sessions.size;
	}

	/** New handshakes use the new material; connections already made stay. */
	replaceTls({certPem: cert, keyPem: key, rootsPem: ca}: TlsMaterial): void {
		this.#tls.setSecureContext({cert, key, ca, minVersion: 'TLSv1.2'});
	}

	/** Accepts everything and says nothing, as a hung process; what comes in is kept for later. */
	hold(): void {
		this.#held ??= [];
	}

	release(): void {
		const held = this.#held ?? [];
		this.#held = undefined;
		for (const work of held) work();
	}

	delay(ms: number): void {
		this.#delayMs = ms;
	}

	/** Cuts every connection without a word. */
	closeConnections(): void {
		for (const session of this.#sessions) session.destroy();
		for (const socket of this.#sockets) socket.destroy();
	}

	async stop(): Promise<void> {
		const closed = new Promise<void>(resolve => {
			this.#tls.close(() => resolve());
		});
		this.#held = undefined;
		this.closeConnections();
		await closed;
	}

	#accept(socket: tls.TLSSocket): void {
		socket.on('error', () => {}); // a reset peer is not the server's failure
		const certificate = socket.getPeerX509Certificate();
		if (certificate && !socket.authorized) {
			this.refusedHandshakes.push(String(socket.authorizationError));
			socket.destroy();
			return;
		}
		if (socket.alpnProtocol !== 'h2') {
			socket.destroy();
			return;
		}
		const session = http2.performServerHandshake(socket, {
			settings: {initialWindowSize: windowBytes, maxConcurrentStreams: 100_000},
		});
		const peer = `${socket.remoteAddress}:${socket.remotePort}`;
		this.#sessions.add(session);
		session.setLocalWindowSize(windowBytes);
		session.on('error', () => {}); // ends in 'close' as well
		const stopWatching = this.#watch(session);
		session.once('close', () => {
			stopWatching();
			this.#sessions.delete(session);
		});
		session.on('stream', (stream: http2.ServerHttp2Stream, headers: http2.IncomingHttpHeaders) => {
			stream.on('error', () => {}); // reset by the client; 'close' follows
			this.#run(() => this.#open(stream, headers, peer, certificate));
		});
	}

	#watch(session: http2.ServerHttp2Session): () => void {
		const {keepaliveMs, maxConnectionAgeMs} = this.#options;
		let answer: NodeJS.Timeout | undefined;
		const ping = setInterval(() => {
			if (session.destroyed) return;
			answer = setTimeout(() => session.destroy(), pingAnswerMs).unref();
			session.ping(() => clearTimeout(answer));
		}, keepaliveMs).unref();
		const timers: NodeJS.Timeout[] = [];
		if (maxConnectionAgeMs !== undefined) {
			const expire = () => {
				// Cut off a moment ago, for want of an answer.
				if (session.destroyed) return;
				session.goaway(http2.constants.NGHTTP2_NO_ERROR);
				timers.push(setTimeout(() => session.destroy(), connectionGraceMs).unref());
			};
			timers.push(setTimeout(expire, maxConnectionAgeMs).unref());
		}
		return () => {
			clearInterval(ping);
			clearTimeout(answer);
			for (const timer of timers) clearTimeout(timer);
		};
	}

	#open(
		stream: http2.ServerHttp2Stream,
		headers: http2.IncomingHttpHeaders,
		peer: string,
		clientCertificate: X509Certificate | undefined,
	): void {
		if (stream.destroyed) return;
		const path = headers[':path'] ?? '';
		const method = this.#options.methods.get(path);
		const writer = new CallWriter(stream, work => this.#run(work, this.#delayMs));
		const call: Call = {
			headers,
			peer,
			clientCertificate,
			send: message => writer.send(message),
			end: status => writer.end(status),
		};
		const handler = method
			? method(call)
			: call.end({code: 'unimplemented', message: `unknown method ${path.split('/').at(-1)}`});
		if (!handler) return;
		const frames = new FrameReader(message => this.#run(() => handler.onMessage(message)));
		stream.on('data', (chunk: Buffer) => {
			if (!frames.push(chunk)) call.end({code: 'internal', message: 'malformed gRPC frame'});
		});
		stream.once('end', () => this.#run(() => handler.onEnd?.()));
		stream.once('close', () => handler.onClose?.());
	}

	/** In order, unless the server is being silent or slow. */
	#run(work: () => void, delayMs = 0): void {
		if (this.#held) this.#held.push(work);
		else if (delayMs > 0) setTimeout(work, delayMs);
		else work();
	}
}
