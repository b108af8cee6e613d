import {connect, type Socket} from 'node:net';
import {systemCode} from '../errors.ts';
import {FrameReader, frame} from './frames.ts';
import {isAnswerTo} from './message.ts';
import {randomId} from './random-id.ts';
import type {Asked} from './udp-upstream.ts';

/** An open connection saves a round trip, and costs the server memory: a short while is enough for bursts. */
const idleMs = 2000;
/** Past this the answers to come are too many for one connection to be lost. */
const mostWaiting = 1000;

/** Asks one server over TCP: one connection for all questions, answers in any order (RFC 7766). */
export class TcpUpstream {
	readonly #address: string;
	readonly #port: number;
	readonly #connections = new Set<Connection>();

	constructor(address: string, port: number) {
		this.#address = address;
		this.#port = port;
	}

	ask(asked: Asked): void {
		for (const connection of this.#connections)
			if (connection.canTake) {
				connection.send(asked);
				return;
			}
		const connection = new Connection(this.#address, this.#port);
		this.#connections.add(connection);
		connection.send(asked);
	}

	tick(nowMs: number): void {
		for (const connection of this.#connections) {
			connection.expire(nowMs);
			if (connection.isClosed && connection.isIdle) this.#connections.delete(connection);
		}
	}

	get isIdle(): boolean {
		return this.#connections.size === 0;
	}

	close(): void {
		for (const connection of this.#connections) connection.close();
		this.#connections.clear();
	}
}

class Connection {
	readonly #socket: Socket;
	readonly #waiting = new Map<number, Asked>();
	readonly #frames = new FrameReader();
	isClosed = false;

	constructor(address: string, port: number) {
		this.#socket = connect({host: address, port, noDelay: true});
		this.#socket.setTimeout(idleMs, () => {
			if (this.#waiting.size === 0) this.close();
		});
		this.#socket.on('data', chunk => {
			for (const message of this.#frames.read(chunk as Buffer)) this.#receive(message);
		});
		this.#socket.on('error', error => this.#end(systemCode(error) === 'ECONNRESET' ? 'closed' : 'refused'));
		this.#socket.on('close', () => this.#end('closed'));
		this.#socket.on('end', () => this.#end('closed'));
	}

	get canTake(): boolean {
		return !this.isClosed && this.#waiting.size < mostWaiting;
	}

	get isIdle(): boolean {
		return this.#waiting.size === 0;
	}

	send(asked: Asked): void {
		const id = randomId(this.#waiting);
		const framed = frame(asked.message);
		framed.writeUInt16BE(id, 2);
		this.#waiting.set(id, asked);
		this.#socket.write(framed);
	}

	expire(nowMs: number): void {
		for (const [id, {expiresMs, settle}] of this.#waiting) {
			if (expiresMs > nowMs) return;
			this.#waiting.delete(id);
			settle(undefined, 'expired');
			// One that does not answer is not asked again: it may be a connection to nobody.
			this.isClosed = true;
		}
		if (this.isClosed && this.#waiting.size === 0) this.close();
	}

	close(): void {
		this.#end('closed');
	}

	#receive(message: Buffer): void {
		if (message.length < 12) return;
		const id = message.readUInt16BE(0);
		const asked = this.#waiting.get(id);
		if (!asked || !isAnswerTo(message, asked.message, asked.questionEnd)) return;
		this.#waiting.delete(id);
		asked.settle(message);
	}

	#end(why: 'refused' | 'closed'): void {
		this.isClosed = true;
		this.#socket.destroy();
		const waiting = [...this.#waiting.values()];
		this.#waiting.clear();
		for (const {settle} of waiting) settle(undefined, why);
	}
}
