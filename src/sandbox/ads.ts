import {AdsConnection, type AdsDeps, type Change} from './ads-connection.ts';
import type {ConnectionView, Protocol} from './ads-events.ts';
import type {Method} from './grpc-server.ts';

/** Both kinds of ADS stream, with istiod's rules for when to answer. */
export class AdsService {
	readonly #deps: AdsDeps;
	readonly #connections = new Set<AdsConnection>();
	#counter = 0;
	#version = 0;
	#versionText = renderVersion(0);
	opened = 0;

	constructor(deps: AdsDeps) {
		this.#deps = deps;
	}

	connections(): readonly ConnectionView[] {
		return [...this.#connections].flatMap(connection => connection.view() ?? []);
	}

	method(protocol: Protocol): Method {
		return call => {
			this.opened++;
			const refusal = this.#deps.refusal();
			const caller = refusal ? undefined : this.#deps.authenticate(call);
			if (!caller) {
				call.end(refusal ?? {code: 'unauthenticated', message: 'authentication failure'});
				return undefined;
			}
			const connection = new AdsConnection({
				...this.#deps,
				call,
				caller,
				protocol,
				nextId: node => `${node}-${++this.#counter}`,
				version: () => this.#versionText,
			});
			this.#connections.add(connection);
			return {
				onMessage: message => connection.receive(message),
				onEnd: () => call.end(),
				onClose: () => {
					this.#connections.delete(connection);
					connection.closed();
				},
			};
		};
	}

	/** Sends a new version to everyone. */
	push(change: Change): void {
		this.#version++;
		this.#versionText = renderVersion(this.#version);
		for (const connection of this.#connections) connection.push(change);
	}
}

/** `RFC3339/COUNTER`. */
function renderVersion(count: number): string {
	return `${new Date().toISOString().slice(0, 19)}Z/${count}`;
}
