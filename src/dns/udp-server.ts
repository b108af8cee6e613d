import {createSocket, type RemoteInfo, type Socket} from 'node:dgram';
import {isIPv6} from 'node:net';

export interface UdpServer {
	readonly port: number;
	close(): Promise<void>;
}

/** Room for a burst while the event loop does something else; the kernel gives what it allows. */
const receiveBufferBytes = 4 * 2 ** 20;

/** @param respond - sends one reply to who asked; may be called later, and after the close, when it does nothing */
export type OnPacket = (message: Buffer, respond: (reply: Buffer) => void) => Buffer | undefined;

/**
 * Receives on one address. `onPacket` returns the reply, or keeps the way to send it later.
 * @throws Error of the system's when the address cannot be bound
 */
export async function startUdpServer(
	address: string,
	port: number,
	onPacket: OnPacket,
	onError: (error: Error) => void,
): Promise<UdpServer> {
	const family = isIPv6(address) ? 6 : 4;
	const socket = createSocket({
		type: `udp${family}`,
		ipv6Only: family === 6,
		// Whom to reply to is an address already; a look-up of it would cost a turn of the event loop for each packet.
		lookup: (host, _options, callback) => callback(null, host, family),
	});
	let isOpen = true;
	socket.on('message', (message: Buffer, from: RemoteInfo) => {
		// A reply to port 0 cannot be sent, and who asks from there is no resolver.
		if (from.port === 0) return;
		const reply = onPacket(message, later => {
			if (isOpen) socket.send(later, 0, later.length, from.port, from.address);
		});
		if (reply) socket.send(reply, 0, reply.length, from.port, from.address);
	});
	await bind(socket, address, port);
	socket.on('error', onError);
	try {
		socket.setRecvBufferSize(receiveBufferBytes);
	} catch {
		// A smaller one loses packets of larger bursts, and clients ask again.
	}
	return {
		port: socket.address().port,
		close: () =>
			new Promise(resolve => {
				if (!isOpen) resolve();
				else {
					isOpen = false;
					socket.close(() => resolve());
				}
			}),
	};
}

function bind(socket: Socket, address: string, port: number): Promise<void> {
	return new Promise((resolve, reject) => {
		const onError = (error: Error) => {
			socket.close();
			reject(error);
		};
		socket.once('error', onError);
		socket.bind({address, port, exclusive: true}, () => {
			socket.off('error', onError);
			resolve();
		});
	});
}
