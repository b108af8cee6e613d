import type {Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {isWildcardType, typeUrl} from '../proto/types.ts';
import type {Cache, Change} from './cache.ts';
import type {Snapshot} from './snapshot.ts';

export interface SavedConfigurationDeps {
	/** Undefined when none is kept. */
	readonly snapshot: Snapshot | undefined;
	readonly cache: Cache;
	/** Whether it may be used now, as far as the control plane is concerned. */
	readonly mayBeUsed: () => boolean;
	/** Why nothing newer is there, in words. */
	readonly whyNotNewer: () => string;
	/** The mesh's ProxyConfig as it was, an encoded Any. */
	readonly onProxyConfig: (any: Buffer) => void;
	/** All that has been taken in, by type. */
	readonly onRestored: (taken: ReadonlyMap<string, Change>) => void;
	/** It has been put aside, and is no longer in the cache. */
	readonly onDropped: () => void;
	readonly log: Logger;
}

/**
 * What is saved is used when the control plane has failed to answer once, or for this long. It may be outdated, and a
 * control plane that is there answers sooner.
 */
const savedAfterMs = 1000;

/** An Envoy that ends this soon after it was given what is saved may have died of it. */
const digestionMs = 30_000;
/** So many in a row, and it is taken for poison. */
const maxDeaths = 3;

/**
 * The configuration that was saved, in use from when the control plane is found silent until it has sent its own
 * (decision 0013).
 */
export class SavedConfiguration {
	readonly #deps: SavedConfigurationDeps;
	readonly #patience = new AbortController();
	#savedAt: Date | undefined;
	#restoring: Promise<void> | undefined;
	/** Whether any of the configuration has come from the control plane: nothing older is put over it. */
	#isOutdated = false;
	#deaths = 0;

	constructor(deps: SavedConfigurationDeps) {
		this.#deps = deps;
	}

	/** Wall-clock time of what is in use; undefined when it is not. */
	get savedAt(): Date | undefined {
		return this.#savedAt;
	}

	/** Settles when none of it is being taken in: two at once would mix. */
	get taken(): Promise<void> | undefined {
		return this.#restoring;
	}

	/** From now on the control plane has its time to answer. */
	wait(clock: Clock): void {
		clock.sleep(savedAfterMs, this.#patience.signal).then(
			() => this.use(),
			() => {
				// There is something newer, or we leave.
			},
		);
	}

	/** Takes it in, once, and only into an empty cache. */
	use(): void {
		if (this.#isOutdated || !this.#deps.mayBeUsed()) return;
		this.#restoring ??= this.#restore()
			.catch((err: unknown) => this.#deps.log.error({err}, 'saved configuration could not be taken in'))
			.finally(() => {
				this.#restoring = done;
			});
	}

	/** The control plane has begun to send what is newer. */
	supersede(): void {
		this.#isOutdated = true;
	}

	/** The control plane has sent all of it. */
	confirm(): void {
		const savedAt = this.#savedAt;
		if (savedAt) this.#deps.log.info({savedAt}, 'the control plane has confirmed or replaced the saved configuration');
		this.#savedAt = undefined;
		this.giveUp();
	}

	/** Nobody waits for it any more. */
	giveUp(): void {
		this.#patience.abort();
	}

	/** Envoy after Envoy that dies of it must not go on for ever. @param livedMs - how long this one did */
	suspect(livedMs: number): void {
		if (!this.#savedAt) return;
		this.#deaths = livedMs < digestionMs ? this.#deaths + 1 : 0;
		if (this.#deaths < maxDeaths) return;
		const {cache, snapshot, onDropped} = this.#deps;
		this.#savedAt = undefined;
		for (const [, type] of cache.types()) type.dropUnconfirmed();
		void snapshot?.putAside(`Envoy ended ${this.#deaths} times soon after it was given it`);
		onDropped();
	}

	async #restore(): Promise<void> {
		const {cache, snapshot, whyNotNewer, onProxyConfig, onRestored, log} = this.#deps;
		const saved = await snapshot?.restore();
		if (!saved) return;
		let proxyConfig: Buffer | undefined;
		for (const {typeUrl: url, resources, removed} of saved.answers) {
			// The last one: those before it are what it was then.
			if (url === typeUrl.proxyConfig) proxyConfig = resources.any(0);
			else await cache.type(url).restore(resources, removed);
		}
		const taken = new Map<string, Change>();
		for (const [url, type] of cache.types()) {
			taken.set(url, {changed: [...type.resources.values()], removed: [], confirmed: []});
			if (isWildcardType(url)) type.isComplete = true;
		}
		if (proxyConfig) onProxyConfig(proxyConfig);
		this.#savedAt = saved.savedAt;
		log.warn(
			{savedAt: saved.savedAt, reason: whyNotNewer()},
			'using the saved configuration until the control plane answers',
		);
		onRestored(taken);
	}
}

const done = Promise.resolve();
