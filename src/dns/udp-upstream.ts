import {createSocket, type Socket} from 'node:dgram';
import {isIPv6} from 'node:net';
import {isAnswerTo} from './message.ts';
import {randomId} from './random-id.ts';

/**
 * What became of one question to one server.
 * @param answer - undefined: none came, and `why` says so: `refused` by the network or who listens there, `expired`, or
 * `closed` by us or by the end of a connection
 */
export type Settle = (answer: Buffer | undefined, why?: 'refused' | 'expired' | 'closed') => void;

export interface Asked {
	readonly message: Buffer;
	readonly questionEnd: number;
	readonly settle: Settle;
	readonly expiresMs: number;
}

/** Sockets at a time: with as many source ports, and ids of 16 bits, a forged answer has to be guessed. */
const mostPipes = 4;
/** A socket is replaced after this many questions, or this time, whichever comes first. */
const mostQuestions = 256;
const longestUseMs = 3000;

/** Asks one server over UDP, from a few sockets with random ports that are replaced all the time. */
export class UdpUpstream {
	readonly #address: string;
	readonly #port: number;
	readonly #nowMs: () => number;
	#pipes: Pipe[] = [];
	#retired = new Set<Pipe>();
	#next = 0;

	constructor(address: string, port: number, nowMs: () => number) {
		this.#address = address;
		this.#port = port;
		this.#nowMs = nowMs;
	}

	ask(asked: Asked): void {
		this.#pipe().send(asked);
	}

	/** Gives up on what has waited too long, and closes sockets that have done their part. */
	tick(nowMs: number): void {
		for (const pipe of this.#pipes) {
			pipe.expire(nowMs);
			if (nowMs >= pipe.retireMs) this.#retire(pipe);
		}
		for (const pipe of this.#retired) {
			pipe.expire(nowMs);
			if (!pipe.isIdle) continue;
			pipe.close();
			this.#retired.delete(pipe);
		}
	}

	/** Nothing is open any more. */
	get isIdle(): boolean {
		return this.#pipes.length === 0 && this.#retired.size === 0;
	}

	close(): void {
		for (const pipe of [...this.#pipes, ...this.#retired]) pipe.close();
		this.#pipes = [];
		this.#retired.clear();
	}

	#pipe(): Pipe {
		if (this.#pipes.length < mostPipes) {
			const pipe = new Pipe(this.#address, this.#port, this.#nowMs() + longestUseMs);
			this.#pipes.push(pipe);
			return pipe;
		}
		this.#next = (this.#next + 1) % this.#pipes.length;
		const pipe = this.#pipes[this.#next]!;
		if (!pipe.isSpent) return pipe;
		this.#retire(pipe);
		return this.#pipe();
	}

	#retire(pipe: Pipe): void {
		this.#pipes = this.#pipes.filter(other => other !== pipe);
		this.#retired.add(pipe);
	}
}

/** One connected socket: the kernel takes packets from that server alone, and tells when nobody listens there. */
class Pipe {
	readonly retireMs: number;
	readonly #socket: Socket;
	readonly #waiting = new Map<number, Asked>();
	#backlog: Buffer[] | undefined = [];
	#sent = 0;
	#isClosed = false;

	constructor(address: string, port: number, retireMs: number) {
		this.retireMs = retireMs;
		const family = isIPv6(address.replace(/%.*$/, '')) ? 6 : 4;
		this.#socket = createSocket({
			type: `udp${family}`,
			// There is nothing to look up.
			lookup: (host, _options, callback) => callback(null, host, family),
		});
		this.#socket.on('message', message => this.#receive(message));
		this.#socket.on('error', () => {
			// Not connected: no route, no file descriptor left. Another socket may fare better, later.
			if (this.#backlog) this.#sent = Number.POSITIVE_INFINITY;
			this.#fail('refused');
		});
		this.#socket.on('connect', () => {
			const backlog = this.#backlog ?? [];
			this.#backlog = undefined;
			for (const message of backlog) this.#send(message);
		});
		this.#socket.connect(port, address);
	}

	get isSpent(): boolean {
		return this.#sent >= mostQuestions;
	}

	get isIdle(): boolean {
		return this.#waiting.size === 0;
	}

	send(asked: Asked): void {
		this.#sent++;
		const id = randomId(this.#waiting);
		const message = Buffer.from(asked.message);
		message.writeUInt16BE(id, 0);
		this.#waiting.set(id, asked);
		if (this.#backlog) this.#backlog.push(message);
		else this.#send(message);
	}

	/** Oldest first, so the first that may wait ends it. */
	expire(nowMs: number): void {
		for (const [id, {expiresMs, settle}] of this.#waiting) {
			if (expiresMs > nowMs) return;
			this.#waiting.delete(id);
			settle(undefined, 'expired');
		}
	}

	close(): void {
		if (this.#isClosed) return;
		this.#isClosed = true;
		this.#socket.close();
		this.#fail('closed');
	}

	#send(message: Buffer): void {
		// The connection may be told after the close.
		if (this.#isClosed) return;
		// An error that an earlier packet has caused is told to the next one, which was then not sent.
		this.#socket.send(message, 0, message.length, error => {
			if (error) this.#fail('refused');
		});
	}

	#receive(message: Buffer): void {
		if (message.length < 12) return;
		const id = message.readUInt16BE(0);
		const asked = this.#waiting.get(id);
		if (!asked || !isAnswerTo(message, asked.message, asked.questionEnd)) return;
		this.#waiting.delete(id);
		asked.settle(message);
	}

	#fail(why: 'refused' | 'closed'): void {
		const waiting = [...this.#waiting.values()];
		this.#waiting.clear();
		for (const {settle} of waiting) settle(undefined, why);
	}
}
