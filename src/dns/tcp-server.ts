import {createServer, isIPv6, type Server, type Socket} from 'node:net';
import {FrameReader, frame} from './frames.ts';

export interface TcpServer {
	readonly port: number;
	readonly connections: number;
	close(): Promise<void>;
}

/** Past this the one that has been idle longest is ended (RFC 7766, section 6.2.2). */
const mostConnections = 256;
/** A connection on which nothing is asked; also how long a message may take to come whole. */
const idleMs = 10_000;
/** Questions of one connection that have no answer yet; more are read when there is room. */
const mostOutstanding = 64;
/** Bytes of answers that a client has not taken. Who does not read is not worth more. */
const mostUnread = 512 * 1024;

/** As of UDP. */
export type OnMessage = (message: Buffer, respond: (reply: Buffer) => void) => Buffer | undefined;

/**
 * Takes questions on one address, several a connection, answered in the order in which answers come (RFC 7766).
 * @throws Error of the system's when the address cannot be bound
 */
export async function startTcpServer(
	address: string,
	port: number,
	onMessage: OnMessage,
	onError: (error: Error) => void,
): Promise<TcpServer> {
	/** In the order of their last question. */
	const open = new Set<Socket>();
	const server = createServer({noDelay: true, allowHalfOpen: true}, socket => {
		if (open.size >= mostConnections) open.values().next().value!.destroy();
		open.add(socket);
		serve(socket, onMessage, () => {
			open.delete(socket);
			open.add(socket);
		});
		socket.on('close', () => open.delete(socket));
	});
	await listen(server, address, port);
	server.on('error', onError);
	return {
		port: (server.address() as {port: number}).port,
		get connections() {
			return open.size;
		},
		close: async () => {
			if (!server.listening) return;
			await new Promise<void>(resolve => {
				server.close(() => resolve());
				for (const socket of open) socket.destroy();
			});
		},
	};
}

function serve(socket: Socket, onMessage: OnMessage, onUse: () => void): void {
	const frames = new FrameReader();
	let outstanding = 0;
	let queue: Buffer[] = [];
	let isWorking = false;
	let hasEnded = false;
	let idle: NodeJS.Timeout | undefined;
	const rest = () => {
		clearTimeout(idle);
		// Timed from the last whole question, not from the last byte: who sends a byte now and then is idle, too.
		if (!socket.destroyed) idle = setTimeout(() => socket.destroy(), idleMs).unref();
	};
	const write = (reply: Buffer) => {
		outstanding--;
		if (socket.destroyed) return;
		socket.write(frame(reply));
		if (socket.writableLength > mostUnread) socket.destroy();
	};
	const ask = (message: Buffer) => {
		let isAnswered = false;
		outstanding++;
		const reply = onMessage(message, later => {
			if (isAnswered) return;
			isAnswered = true;
			write(later);
			rest();
			work();
		});
		if (reply) write(reply);
	};
	const work = () => {
		// An answer may come while its question is still being asked.
		if (isWorking) return;
		isWorking = true;
		while (queue.length > 0 && outstanding < mostOutstanding && !socket.destroyed) ask(queue.shift()!);
		isWorking = false;
		if (queue.length > 0) socket.pause();
		else if (socket.isPaused()) socket.resume();
		else if (hasEnded && outstanding === 0) socket.end();
	};
	socket.on('data', chunk => {
		const messages = frames.read(chunk as Buffer);
		if (messages.length === 0) return;
		onUse();
		rest();
		queue = queue.length > 0 ? [...queue, ...messages] : messages;
		work();
	});
	// A client that has said all it wants to may still wait for answers.
	socket.on('end', () => {
		hasEnded = true;
		work();
	});
	socket.on('error', () => socket.destroy());
	socket.on('close', () => clearTimeout(idle));
	rest();
}

function listen(server: Server, address: string, port: number): Promise<void> {
	return new Promise((resolve, reject) => {
		server.once('error', reject);
		server.listen({host: address, port, ipv6Only: isIPv6(address), exclusive: true}, () => {
			server.off('error', reject);
			resolve();
		});
	});
}
