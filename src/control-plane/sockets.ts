import type {Socket} from 'node:net';
import type {ChannelCredentials} from '@grpc/grpc-js';

type SecureConnector = ReturnType<ChannelCredentials['_createSecureConnector']>;

/** A peer that lives answers our end with its own within a round trip. */
const partingMs = 5000;

/**
 * The sockets of one client. grpc-js (1.14) forgets a connection that it gives up in the middle of a handshake but does not
 * end it, and Node waits for ever for the end of a peer to whom we have said ours: towards a control plane that hangs,
 * or a balancer with nobody behind it, each attempt would leave a socket open, and all of them go on when it wakes up.
 */
export class ClientSockets {
	/** To make the client with. */
	readonly credentials: ChannelCredentials;
	readonly #shakingHands = new Set<Socket>();
	readonly #through = new Set<Socket>();
	#isOver = false;

	constructor(base: ChannelCredentials) {
		this.credentials = Object.create(base) as ChannelCredentials;
		this.credentials._createSecureConnector = (...args) => this.#watch(base._createSecureConnector(...args));
	}

	/** After the client was closed: nothing new begins, and what is there has a moment to end in order. */
	close(): void {
		this.#isOver = true;
		for (const socket of this.#shakingHands) socket.destroy();
		if (this.#through.size > 0) setTimeout(() => this.destroy(), partingMs).unref();
	}

	/** The same at once. */
	destroy(): void {
		this.#isOver = true;
		for (const socket of [...this.#shakingHands, ...this.#through]) socket.destroy();
	}

	#watch(connector: SecureConnector): SecureConnector {
		return {
			connect: async socket => {
				// It was on its way when the attempt was given up.
				if (this.#isOver) throw new Error('given up');
				this.#shakingHands.add(socket);
				socket.once('close', () => this.#through.delete(socket));
				try {
					const result = await connector.connect(socket);
					this.#through.add(socket);
					return result;
				} finally {
					this.#shakingHands.delete(socket);
				}
			},
			waitForReady: () => connector.waitForReady(),
			getCallCredentials: () => connector.getCallCredentials(),
			destroy: () => connector.destroy(),
		};
	}
}
