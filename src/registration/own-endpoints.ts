import {typeUrl} from '../proto/types.ts';
import {FieldReader, WireError} from '../proto/wire.ts';

/** An answer of the control plane, as far as it is looked at. */
export interface SeenResponse {
	readonly typeUrl: string;
	readonly resources: {
		readonly names: readonly string[];
		any(index: number): Buffer;
		/** Indices of those with these bytes in them. */
		holding(needle: Buffer): Iterable<number>;
	};
	readonly removed: readonly string[];
}

/** Our address among the endpoints of a service, as callers are told of it. */
export interface OwnEndpoint {
	/** `outbound|80||shop.ns.svc.cluster.local` */
	readonly service: string;
	readonly port: number;
	/** False: known, but nobody is sent there. */
	readonly isHealthy: boolean;
	/** `istio`: callers speak mutual TLS with it. */
	readonly tlsMode: string;
	/** `GROUP;NAMESPACE;CANONICAL-NAME;CANONICAL-REVISION;CLUSTER` */
	readonly workload: string;
}

/** Follows what the control plane says of our own address. */
export class OwnEndpoints {
	/** Ports that we have been given an inbound cluster for. */
	readonly served = new Set<number>();
	readonly #address: () => string;
	readonly #byService = new Map<string, readonly OwnEndpoint[]>();

	constructor(address: () => string) {
		this.#address = address;
	}

	all(): OwnEndpoint[] {
		return [...this.#byService.values()].flat();
	}

	/** Another address than before: what is known is of that one. */
	forget(): void {
		this.#byService.clear();
	}

	/** @param isWhole - what it does not name is gone. @returns whether it could concern us */
	see({typeUrl: url, resources, removed}: SeenResponse, isWhole: boolean): boolean {
		if (url === typeUrl.cluster) {
			if (isWhole) this.served.clear();
			if (isWhole && this.#byService.size > 0) {
				const kept = new Set(resources.names);
				for (const name of this.#byService.keys()) if (!kept.has(name)) this.#byService.delete(name);
			}
			for (const name of resources.names) {
				const port = inboundPort(name);
				if (port !== undefined) this.served.add(port);
			}
			for (const name of removed) {
				const port = inboundPort(name);
				if (port !== undefined) this.served.delete(port);
				this.#byService.delete(name);
			}
			return true;
		}
		if (url !== typeUrl.endpoint) return false;
		const address = this.#address();
		const found = new Map<string, OwnEndpoint[]>();
		for (const index of resources.holding(Buffer.from(address))) {
			const name = resources.names[index]!;
			const own = findAddress(name, resources.any(index), address);
			if (own.length > 0) found.set(name, own);
		}
		if (this.#byService.size > 0) {
			for (const name of resources.names) if (!found.has(name)) this.#byService.delete(name);
			for (const name of removed) this.#byService.delete(name);
		}
		for (const [name, own] of found) this.#byService.set(name, own);
		return true;
	}
}

/** `inbound|8080||` → 8080 */
function inboundPort(cluster: string): number | undefined {
	if (!cluster.startsWith('inbound|')) return undefined;
	const [, port] = /^inbound\|(\d+)\|/.exec(cluster) ?? [];
	return port === undefined ? undefined : Number(port);
}

/** core.v3.HealthStatus: UNKNOWN 0, HEALTHY 1, DEGRADED 5 are sent requests. */
const sentTo: ReadonlySet<number> = new Set([0, 1, 5]);

/**
 * Endpoints with this address. Any: value 2 = ClusterLoadAssignment: endpoints 2 → lb_endpoints 2 {endpoint 1,
 * health_status 2, metadata 3}. What cannot be read has none: Envoy will say what is wrong with it.
 */
function findAddress(service: string, any: Buffer, address: string): OwnEndpoint[] {
	const found: OwnEndpoint[] = [];
	try {
		for (const endpoint of descend(new FieldReader(any), [2, 2, 2])) {
			let [port, health, tlsMode, workload] = [0, 0, '', ''];
			while (endpoint.next()) {
				if (endpoint.number === 1) port = portAt(endpoint.message(), address);
				else if (endpoint.number === 2) health = endpoint.uint();
				else if (endpoint.number === 3) {
					const fields = readMetadata(endpoint.message());
					tlsMode = fields.get('envoy.transport_socket_match/tlsMode') ?? '';
					workload = fields.get('istio/workload') ?? '';
				}
			}
			if (port !== 0) found.push({service, port, isHealthy: sentTo.has(health), tlsMode, workload});
		}
	} catch (error) {
		if (!(error instanceof WireError)) throw error;
	}
	return found;
}

/** Endpoint: address 1 → socket_address 1 {address 2, port_value 3}. 0 for another address. */
function portAt(endpoint: FieldReader, address: string): number {
	for (const socket of descend(endpoint, [1, 1])) {
		let host = '';
		let port = 0;
		while (socket.next()) {
			if (socket.number === 2) host = socket.string();
			else if (socket.number === 3) port = socket.uint();
		}
		if (host === address) return port;
	}
	return 0;
}

/** Metadata: filter_metadata 1, a map of Struct {fields 1, a map of Value {string_value 3}}; as `FILTER/FIELD` → text. */
function readMetadata(metadata: FieldReader): Map<string, string> {
	const found = new Map<string, string>();
	for (const [filter, struct] of entriesOf(metadata))
		for (const [field, value] of entriesOf(struct))
			while (value.next()) if (value.number === 3) found.set(`${filter}/${field}`, value.string());
	return found;
}

/** Field 1, a map: key 1, value 2. */
function* entriesOf(map: FieldReader): Generator<readonly [string, FieldReader]> {
	while (map.next()) {
		if (map.number !== 1) continue;
		let key = '';
		const entry = map.message();
		while (entry.next()) {
			if (entry.number === 1) key = entry.string();
			else if (entry.number === 2) yield [key, entry.message()];
		}
	}
}

/** Every message at the end of a path of field numbers. */
function* descend(reader: FieldReader, [number, ...rest]: readonly number[]): Generator<FieldReader> {
	if (number === undefined) {
		yield reader;
		return;
	}
	while (reader.next()) if (reader.number === number) yield* descend(reader.message(), rest);
}
