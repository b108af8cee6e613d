import {hash} from 'node:crypto';
import {setImmediate as nextTurn} from 'node:timers/promises';
import {typeUrl} from '../proto/types.ts';
import {FieldReader, WireError} from '../proto/wire.ts';
import type {ResourceList} from './envelope.ts';
import {type Place, type Slab, Store} from './store.ts';

/** One resource as the control plane sent it. A new content is a new object, so two are the same only if their content is. */
export class CachedResource implements Place {
	readonly name: string;
	/** Of a cluster: the EDS name, when its endpoints are from EDS. */
	readonly endpointName: string | undefined;
	slab: Slab;
	start: number;
	end: number;

	constructor(name: string, {slab, start, end}: Place, endpointName: string | undefined) {
		this.name = name;
		this.endpointName = endpointName;
		this.slab = slab;
		this.start = start;
		this.end = end;
	}

	/** The encoded Any, shared with others' memory: not to be kept. */
	get any(): Buffer {
		return this.slab.bytes.subarray(this.start, this.end);
	}

	get size(): number {
		return this.end - this.start;
	}
}

/**
 * Hash of the content, so that it is the same after a restart of this agent and of the control plane (which numbers
 * everything anew), and a returning Envoy is sent only what changed. Not kept: it is needed once for each Envoy.
 * @param profile - of the rewriter that makes what Envoy gets; '' when nothing is rewritten
 */
export function versionOf(any: Buffer, profile: string): string {
	const version = hash('sha256', any, 'base64').slice(0, 16);
	return profile === '' ? version : `${version}.${profile}`;
}

/** What changed in one type by one answer of the control plane. */
export interface Change {
	readonly changed: readonly CachedResource[];
	readonly removed: readonly CachedResource[];
	/** As they were on disk, and now known to be still so. */
	readonly confirmed: readonly CachedResource[];
}

/** Resources taken in before other work gets a turn: about a millisecond's worth. */
const resourcesPerTurn = 500;

/** All resources of one type. */
export class TypeCache {
	readonly #resources = new Map<string, CachedResource>();
	readonly #store: Store;
	readonly #isClusters: boolean;
	/** The name, as one string for all who keep it. */
	readonly #intern: (name: string) => string;
	#bytes = 0;
	/** Restored from disk, and not heard of from the control plane since. */
	readonly #unconfirmed = new Set<string>();
	/**
	 * For wildcard types: whether a whole state is here. Until then nothing may be concluded from what is missing: an
	 * agent that started empty and told Envoy to remove the rest would wipe its data plane.
	 */
	isComplete = false;
	/**
	 * Whether that state came from the control plane since this agent started. One from disk may be older than what a
	 * running Envoy holds.
	 */
	isConfirmed = false;

	constructor(store: Store, isClusters: boolean, intern: (name: string) => string) {
		this.#store = store;
		this.#isClusters = isClusters;
		this.#intern = intern;
	}

	get resources(): ReadonlyMap<string, CachedResource> {
		return this.#resources;
	}

	get sizeBytes(): number {
		return this.#bytes;
	}

	/**
	 * Takes in an answer, letting other work in between. `isWhole`: resources that are not in it are gone.
	 * Two at once would mix; the caller waits for one before the next.
	 */
	async apply(list: ResourceList, removed: readonly string[], isWhole: boolean): Promise<Change> {
		const changed = await this.#take(list);
		const confirmed = this.#confirm(list.names);
		const gone: CachedResource[] = [];
		const drop = (name: string) => {
			const resource = this.delete(name);
			if (resource) gone.push(resource);
		};
		for (const name of removed) drop(name);
		if (isWhole) {
			const kept = new Set(list.names);
			for (const name of this.#resources.keys()) if (!kept.has(name)) drop(name);
			this.isComplete = true;
			this.isConfirmed = true;
		}
		return {changed, removed: gone, confirmed};
	}

	/** Takes in what was on disk; it counts as unconfirmed until an answer names it. */
	async restore(list: ResourceList, removed: readonly string[]): Promise<void> {
		for (const {name} of await this.#take(list)) this.#unconfirmed.add(name);
		for (const name of removed) this.delete(name);
	}

	isUnconfirmed(name: string): boolean {
		return this.#unconfirmed.has(name);
	}

	/** Drops what was restored and not confirmed. */
	dropUnconfirmed(): void {
		for (const name of [...this.#unconfirmed]) this.delete(name);
		this.isComplete = this.isConfirmed;
	}

	#confirm(names: readonly string[]): CachedResource[] {
		if (this.#unconfirmed.size === 0) return [];
		return names.filter(name => this.#unconfirmed.delete(name)).map(name => this.#resources.get(name)!);
	}

	delete(name: string): CachedResource | undefined {
		const resource = this.#resources.get(name);
		if (!resource) return undefined;
		this.#resources.delete(name);
		this.#unconfirmed.delete(name);
		this.#forget(resource);
		return resource;
	}

	async #take(list: ResourceList): Promise<CachedResource[]> {
		const {message, names, starts, ends} = list;
		const news: number[] = [];
		let newBytes = 0;
		for (let i = 0; i < names.length; i++) {
			if (i % resourcesPerTurn === resourcesPerTurn - 1) await nextTurn();
			const known = this.#resources.get(names[i]!);
			if (known && isSame(known, message, starts[i]!, ends[i]!)) continue;
			news.push(i);
			newBytes += ends[i]! - starts[i]!;
		}
		const adopted = this.#store.adopt(message, newBytes);
		const changed: CachedResource[] = [];
		for (const i of news) {
			if (changed.length % resourcesPerTurn === resourcesPerTurn - 1) await nextTurn();
			const [start, end] = [starts[i]!, ends[i]!];
			const place = adopted ? this.#store.use(adopted, start, end) : this.#store.put(message, start, end);
			changed.push(this.#set(names[i]!, place));
		}
		if (adopted && list.isPlainDelta && changed.length === names.length) adopted.answerBytes = newBytes;
		return changed;
	}

	#set(name: string, place: Place): CachedResource {
		const old = this.#resources.get(name);
		const own = old?.name ?? this.#intern(name);
		const resource = new CachedResource(own, place, this.#isClusters ? readEndpointName(own, place) : undefined);
		this.#resources.set(own, resource);
		this.#bytes += resource.size;
		if (old) this.#forget(old);
		return resource;
	}

	#forget(resource: CachedResource): void {
		this.#bytes -= resource.size;
		this.#store.free(resource);
	}
}

function isSame({slab, start, end}: CachedResource, message: Buffer, from: number, to: number): boolean {
	return end - start === to - from && slab.bytes.compare(message, from, to, start, end) === 0;
}

export class Cache {
	readonly #store = new Store();
	readonly #types = new Map<string, TypeCache>();

	type(url: string): TypeCache {
		let cache = this.#types.get(url);
		if (!cache) {
			// istiod names endpoints after their cluster.
			const clusters = url === typeUrl.endpoint ? this.type(typeUrl.cluster) : undefined;
			const intern = (name: string) => clusters?.resources.get(name)?.endpointName ?? name;
			cache = new TypeCache(this.#store, url === typeUrl.cluster, intern);
			this.#types.set(url, cache);
		}
		return cache;
	}

	types(): IterableIterator<[string, TypeCache]> {
		return this.#types.entries();
	}

	/** The EDS name of a cluster we hold; undefined when its endpoints are not from EDS, or when it cannot be read. */
	endpointName(cluster: string): string | undefined {
		return this.type(typeUrl.cluster).resources.get(cluster)?.endpointName;
	}

	get isComplete(): boolean {
		return this.type(typeUrl.cluster).isComplete && this.type(typeUrl.listener).isComplete;
	}

	get isConfirmed(): boolean {
		return this.type(typeUrl.cluster).isConfirmed && this.type(typeUrl.listener).isConfirmed;
	}

	/** Bytes of all resources. */
	get liveBytes(): number {
		return this.#store.liveBytes;
	}

	/** Bytes kept for resources, with what is lost between them. */
	get heldBytes(): number {
		return this.#store.heldBytes;
	}

	/** Gives back what many small changes have left half empty. */
	tidy(): void {
		if (this.#store.isWasteful) this.#store.compact(this.#all());
	}

	*#all(): Generator<CachedResource> {
		for (const type of this.#types.values()) yield* type.resources.values();
	}
}

const discoveryTypeEds = 3;

function readEndpointName(name: string, {slab, start, end}: Place): string | undefined {
	try {
		return endpointNameOf(name, new FieldReader(slab.bytes, start, end));
	} catch (error) {
		// Envoy will say better what is wrong with it.
		if (error instanceof WireError) return undefined;
		throw error;
	}
}

/**
 * The EDS name of a cluster, or undefined when its endpoints are not from EDS. Cluster: name 1, type 2 (EDS = 3),
 * eds_cluster_config 3 {service_name 2}. @throws WireError
 */
export function endpointNameOf(name: string, any: FieldReader): string | undefined {
	let isEds = false;
	let serviceName: string | undefined;
	while (any.next()) {
		if (any.number !== 2) continue;
		for (const cluster = any.message(); cluster.next(); ) {
			if (cluster.number === 2) isEds = cluster.uint() === discoveryTypeEds;
			else if (cluster.number === 3) {
				serviceName = '';
				for (const eds = cluster.message(); eds.next(); ) if (eds.number === 2) serviceName = eds.string();
			}
			// Most of a cluster comes after these two, and need not be walked.
			if (isEds && serviceName !== undefined) break;
		}
	}
	if (!isEds) return undefined;
	// Mostly the same text: one string then.
	return !serviceName || serviceName === name ? name : serviceName;
}
