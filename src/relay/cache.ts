import {hash} from 'node:crypto';
import {typeUrl} from '../proto/types.ts';
import {FieldReader, WireError} from '../proto/wire.ts';
import type {RawResource} from './envelope.ts';
import type {Rewriter} from './rewrite.ts';

/** One resource as the control plane sent it. Never changed; a new content is a new object. */
export class CachedResource {
	readonly name: string;
	/** The encoded Any. */
	readonly any: Buffer;
	#version: string | undefined;
	#profile: string | undefined;
	#rewritten: Buffer | undefined;

	constructor(name: string, any: Buffer) {
		this.name = name;
		this.any = any;
	}

	/**
	 * Hash of the content, so that it is the same after a restart of this agent and of the control plane (which
	 * numbers everything anew), and a returning Envoy is sent only what changed.
	 */
	versionFor(rewriter: Rewriter): string {
		this.#version ??= hash('sha256', this.any, 'base64').slice(0, 16);
		return rewriter.profile === '' ? this.#version : `${this.#version}.${rewriter.profile}`;
	}

	/** The Any as this Envoy can take it; worked out once. */
	bytesFor(rewriter: Rewriter, url: string): Buffer {
		if (rewriter.profile === '') return this.any;
		if (this.#profile !== rewriter.profile) {
			this.#profile = rewriter.profile;
			this.#rewritten = rewriter.rewrite(url, this.name, this.any);
		}
		return this.#rewritten!;
	}
}

/** What changed in one type by one answer of the control plane. */
export interface Change {
	readonly changed: readonly string[];
	readonly removed: readonly string[];
}

/** All resources of one type. */
export class TypeCache {
	readonly resources = new Map<string, CachedResource>();
	/**
	 * For wildcard types: whether a whole state has been received since this agent started. Until then nothing may be
	 * concluded from what is missing: an agent that started empty and told Envoy to remove the rest would wipe its
	 * data plane.
	 */
	isComplete = false;

	/** Takes in an answer. `isWhole`: resources that are not in it are gone. */
	apply(resources: readonly RawResource[], removed: readonly string[], isWhole: boolean, messageBytes: number): Change {
		const changed: RawResource[] = [];
		let changedBytes = 0;
		for (const resource of resources) {
			if (this.resources.get(resource.name)?.any.equals(resource.any)) continue;
			changed.push(resource);
			changedBytes += resource.any.length;
		}
		// A few slices would keep the whole message they came in alive; then their bytes are copied out of it.
		const isCopied = changedBytes * 2 < messageBytes;
		for (const {name, any} of changed)
			this.resources.set(name, new CachedResource(name, isCopied ? Buffer.from(any) : any));

		const gone = removed.filter(name => this.resources.delete(name));
		if (isWhole) {
			const kept = new Set(resources.map(({name}) => name));
			for (const name of this.resources.keys()) {
				if (kept.has(name)) continue;
				this.resources.delete(name);
				gone.push(name);
			}
			this.isComplete = true;
		}
		return {changed: changed.map(({name}) => name), removed: gone};
	}

	get sizeBytes(): number {
		let sum = 0;
		for (const {any} of this.resources.values()) sum += any.length;
		return sum;
	}
}

export class Cache {
	readonly #types = new Map<string, TypeCache>();

	type(url: string): TypeCache {
		let cache = this.#types.get(url);
		if (!cache) {
			cache = new TypeCache();
			this.#types.set(url, cache);
		}
		return cache;
	}

	types(): IterableIterator<[string, TypeCache]> {
		return this.#types.entries();
	}

	/** The EDS name of a cluster we hold; undefined when its endpoints are not from EDS, or when it cannot be read. */
	endpointName(cluster: string): string | undefined {
		const resource = this.type(typeUrl.cluster).resources.get(cluster);
		try {
			return resource && endpointNameOf(resource);
		} catch (error) {
			// Envoy will say better what is wrong with it.
			if (error instanceof WireError) return undefined;
			throw error;
		}
	}

	get isComplete(): boolean {
		return this.type(typeUrl.cluster).isComplete && this.type(typeUrl.listener).isComplete;
	}
}

const discoveryTypeEds = 3;

/**
 * The EDS name of a cluster, or undefined when its endpoints are not from EDS. Cluster: name 1, type 2 (EDS = 3),
 * eds_cluster_config 3 {service_name 2}. @throws WireError
 */
export function endpointNameOf({name, any}: RawResource): string | undefined {
	let isEds = false;
	let serviceName = '';
	for (const field = new FieldReader(any); field.next(); ) {
		if (field.number !== 2) continue;
		for (const cluster = field.message(); cluster.next(); ) {
			if (cluster.number === 2) isEds = cluster.uint() === discoveryTypeEds;
			else if (cluster.number === 3) {
				for (const eds = cluster.message(); eds.next(); ) if (eds.number === 2) serviceName = eds.string();
			}
		}
	}
	return isEds ? serviceName || name : undefined;
}
