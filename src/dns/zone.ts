import {hexOf, parseAddress} from './addresses.ts';
import {encodeName} from './message.ts';
import type {NameInfo, NameTable} from './name-table.ts';
import {type EncodedRecords, encodeAddresses} from './replies.ts';

export interface ZoneSettings {
	/** Of this workload: its services are known by their bare names. */
	readonly namespace: string;
	/** Of the cluster, `svc.cluster.local`: services in it have short names. */
	readonly clusterDomain: string;
	readonly ttlSeconds: number;
}

/** One host of the name table under all its names. Its records are encoded when they are first asked for. */
export class Host {
	readonly name: string;
	readonly info: NameInfo;
	readonly #ttlSeconds: number;
	#ipv4: EncodedRecords | undefined;
	#ipv6: EncodedRecords | undefined;
	#both: EncodedRecords[] | undefined;

	constructor(name: string, info: NameInfo, ttlSeconds: number) {
		this.name = name;
		this.info = info;
		this.#ttlSeconds = ttlSeconds;
	}

	get ipv4(): EncodedRecords {
		this.#ipv4 ??= encodeAddresses(this.#addresses(4), this.#ttlSeconds);
		return this.#ipv4;
	}

	get ipv6(): EncodedRecords {
		this.#ipv6 ??= encodeAddresses(this.#addresses(16), this.#ttlSeconds);
		return this.#ipv6;
	}

	/** The family there is more of; for questions of any type, which need not be answered whole (RFC 8482). */
	get any(): EncodedRecords {
		this.#both ??= [this.ipv4, this.ipv6].toSorted((a, b) => b.bytes.length - a.bytes.length);
		return this.#both[0]!;
	}

	#addresses(length: number): Uint8Array[] {
		return this.info.addresses.map(parseAddress).filter((address): address is Uint8Array => address?.length === length);
	}
}

export interface Match {
	readonly host: Host;
	/** The name under which the host was found, as on the wire, where it is not the question's. */
	readonly alias: string | undefined;
	readonly how: 'name' | 'wildcard' | 'search domain' | 'wildcard and search domain';
}

/** Hosts between two looks at the time. */
const hostsAStep = 64;

/** Builds the zone of a table in steps, so that a large one does not keep questions waiting. */
export function* buildZone(table: NameTable, settings: ZoneSettings): Generator<void, Zone> {
	const names = new Map<string, Host>();
	const wildcards = new Map<string, Host>();
	const short = new Map<string, Host>();
	let turn = 0;
	for (const [name, info] of table) {
		if (++turn % hostsAStep === 0) yield;
		const key = encodeName(name)!;
		const host = new Host(name, info, settings.ttlSeconds);
		names.set(key, host);
		if (key.startsWith('\x01*')) wildcards.set(key.slice(2), host);
		for (const other of shortNamesOf(name, info, settings)) {
			const otherKey = encodeName(other);
			if (otherKey !== undefined) short.set(otherKey, host);
		}
	}
	// A host's full name is never taken by the short name of another.
	for (const [key, host] of short) {
		if (++turn % hostsAStep === 0) yield;
		if (!names.has(key)) names.set(key, host);
	}
	return new Zone(names, wildcards, table.size);
}

/** The name table as it is looked up: names as on the wire. Built once a table, never changed. */
export class Zone {
	readonly hosts: number;
	readonly names: ReadonlyMap<string, Host>;
	/** By what follows `*.`. */
	readonly #wildcards: ReadonlyMap<string, Host>;
	#ancestors: ReadonlySet<string> | undefined;
	#addresses: ReadonlyMap<string, readonly string[]> | undefined;

	constructor(names: ReadonlyMap<string, Host>, wildcards: ReadonlyMap<string, Host>, hosts: number) {
		this.names = names;
		this.hosts = hosts;
		this.#wildcards = wildcards;
	}

	/** Of all hosts, as the table has them. */
	get fullNames(): Iterable<string> {
		return new Set([...this.names.values()].map(({name}) => name));
	}

	/**
	 * The host that a name belongs to: by that name, without one of the search domains that a resolver has put behind
	 * it, or by a wildcard, the longest first.
	 * @param search - domains as on the wire
	 */
	find(key: string, search: readonly string[]): Match | undefined {
		const host = this.names.get(key);
		if (host) return {host, alias: undefined, how: 'name'};
		const bare = search.filter(domain => key.length > domain.length && key.endsWith(domain));
		for (const domain of bare) {
			const alias = `${key.slice(0, -domain.length)}\0`;
			const found = this.names.get(alias);
			if (found) return {host: found, alias, how: 'search domain'};
		}
		if (this.#wildcards.size === 0) return undefined;
		const found = this.#findWildcard(key);
		if (found) return {host: found, alias: undefined, how: 'wildcard'};
		for (const domain of bare) {
			const alias = `${key.slice(0, -domain.length)}\0`;
			const behind = this.#findWildcard(alias);
			if (behind) return {host: behind, alias, how: 'wildcard and search domain'};
		}
		return undefined;
	}

	/** Whether there are names below this one, so that it exists although nothing is known of it (RFC 8020). */
	hasNamesBelow(key: string): boolean {
		if (!this.#ancestors) {
			const ancestors = new Set<string>();
			for (const name of this.names.keys()) for (const parent of parentsOf(name)) ancestors.add(parent);
			this.#ancestors = ancestors;
		}
		return this.#ancestors.has(key);
	}

	/** Full names of the hosts with this address, as on the wire. @param address - in hexadecimal */
	namesOf(address: string): readonly string[] {
		this.#addresses ??= this.#indexAddresses();
		return this.#addresses.get(address) ?? [];
	}

	#indexAddresses(): ReadonlyMap<string, readonly string[]> {
		const found = new Map<string, string[]>();
		for (const host of new Set(this.names.values())) {
			if (host.name.startsWith('*')) continue;
			for (const text of host.info.addresses) {
				const address = hexOf(parseAddress(text)!);
				const names = found.get(address);
				if (names) names.push(encodeName(host.name)!);
				else found.set(address, [encodeName(host.name)!]);
			}
		}
		return found;
	}

	#findWildcard(key: string): Host | undefined {
		for (const parent of parentsOf(key)) {
			const host = this.#wildcards.get(parent);
			if (host) return host;
		}
		return undefined;
	}
}

/** Names above this one, nearest first, without the root. */
function* parentsOf(key: string): Generator<string> {
	for (let position = 1 + key.charCodeAt(0); key.charCodeAt(position) > 0; position += 1 + key.charCodeAt(position))
		yield key.slice(position);
}

/**
 * Further names of a Kubernetes service in our own cluster's domain: `name.namespace`, `name.namespace.svc`, and in our
 * namespace `name` (pkg/dns/client of Istio). Services of other domains have none: they would be told apart by nothing.
 */
function shortNamesOf(host: string, info: NameInfo, {namespace, clusterDomain}: ZoneSettings): string[] {
	if (info.registry !== 'Kubernetes' || !host.endsWith(`.${clusterDomain}`)) return [];
	const {shortName} = info;
	if (shortName === '') return info.otherNames.slice();
	const inNamespace = `${shortName}.${info.namespace}`;
	return [
		inNamespace,
		`${inNamespace}.${clusterDomain.split('.')[0]}`,
		...(info.namespace === namespace ? [shortName] : []),
		...info.otherNames,
	];
}
