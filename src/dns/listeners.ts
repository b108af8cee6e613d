import {systemCode} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {largestMessage} from './message.ts';
import {startTcpServer, type TcpServer} from './tcp-server.ts';
import {startUdpServer, type UdpServer} from './udp-server.ts';

/** Takes a question. @param largest - bytes that the transport takes; undefined = what the client says */
export type Ask = (
	message: Buffer,
	isTcp: boolean,
	largest: number | undefined,
	respond: (reply: Buffer) => void,
) => Buffer | undefined;

export interface ListenersDeps {
	readonly addresses: readonly string[];
	/** 0 = any that is free, the same for both transports of an address. */
	readonly port: number;
	readonly clock: Clock;
	readonly log: Logger;
	readonly ask: Ask;
	readonly onChange: () => void;
}

export interface ListenerState {
	readonly address: string;
	readonly port: number;
	/** `absent`: this machine has no such address, as with IPv6 switched off. */
	readonly state: 'listening' | 'taken' | 'absent' | 'failed';
	readonly reason?: string | undefined;
}

/** Between attempts to bind what was taken. */
const retryMs = 1000;

interface Pair {
	readonly udp: UdpServer;
	readonly tcp: TcpServer;
}

/** UDP and TCP on each address; one that is taken is tried again until it is free. */
export class Listeners {
	readonly #deps: ListenersDeps;
	readonly #states = new Map<string, ListenerState>();
	readonly #pairs = new Map<string, Pair>();
	readonly #stopping = new AbortController();
	#retrying: Promise<void> | undefined;

	constructor(deps: ListenersDeps) {
		this.#deps = deps;
	}

	/** Tries each address once; what could not be bound is tried again behind the scenes. */
	async start(): Promise<void> {
		await Promise.all(this.#deps.addresses.map(address => this.#open(address)));
		this.#startRetrying();
	}

	get states(): readonly ListenerState[] {
		return [...this.#states.values()];
	}

	get connections(): number {
		return [...this.#pairs.values()].reduce((sum, {tcp}) => sum + tcp.connections, 0);
	}

	async stop(): Promise<void> {
		this.#stopping.abort();
		await this.#retrying;
		await Promise.all([...this.#pairs.values()].flatMap(({udp, tcp}) => [udp.close(), tcp.close()]));
		this.#pairs.clear();
	}

	#startRetrying(): void {
		this.#retrying ??= this.#retry()
			.catch(() => {}) // stopped
			.finally(() => {
				this.#retrying = undefined;
			});
	}

	async #retry(): Promise<void> {
		const {clock, addresses} = this.#deps;
		for (;;) {
			const missing = addresses.filter(address => ['taken', 'failed'].includes(this.#states.get(address)!.state));
			if (missing.length === 0) return;
			await clock.sleep(retryMs, this.#stopping.signal);
			for (const address of missing) await this.#open(address);
		}
	}

	async #open(address: string): Promise<void> {
		const {port, ask} = this.#deps;
		const failed = (error: Error) => this.#set({address, port, ...explain(error)});
		const lost = (error: Error) => {
			const pair = this.#pairs.get(address);
			this.#pairs.delete(address);
			failed(error);
			void Promise.all([pair?.udp.close(), pair?.tcp.close()]).then(() => this.#startRetrying());
		};
		let udp: UdpServer | undefined;
		try {
			udp = await startUdpServer(address, port, (message, respond) => ask(message, false, undefined, respond), lost);
			const tcp = await startTcpServer(
				address,
				udp.port,
				(message, respond) => ask(message, true, largestMessage, respond),
				lost,
			);
			this.#pairs.set(address, {udp, tcp});
			this.#set({address, port: udp.port, state: 'listening'});
		} catch (error) {
			await udp?.close();
			// With any port, one that UDP gets may be taken for TCP.
			if (port === 0 && systemCode(error) === 'EADDRINUSE') await this.#open(address);
			else failed(error as Error);
		}
	}

	#set(state: ListenerState): void {
		const before = this.#states.get(state.address);
		this.#states.set(state.address, state);
		if (before?.state === state.state && before.reason === state.reason) return;
		if (state.state === 'absent') this.#deps.log.info({address: state.address}, 'dns address is not on this machine');
		else if (state.state !== 'listening') this.#deps.log.warn({...state}, 'dns address cannot be listened on');
		this.#deps.onChange();
	}
}

function explain(error: Error): Pick<ListenerState, 'state' | 'reason'> {
	switch (systemCode(error)) {
		case 'EADDRINUSE':
			return {state: 'taken', reason: 'somebody else listens there'};
		case 'EADDRNOTAVAIL':
		case 'EAFNOSUPPORT':
			return {state: 'absent'};
		default:
			return {state: 'failed', reason: error.message};
	}
}
