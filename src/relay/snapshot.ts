import {existsSync} from 'node:fs';
import {rename, rm} from 'node:fs/promises';
import {AgentError, reasonOf, systemCode} from '../errors.ts';
import {type DurableFs, systemFs, temporaryPrefix} from '../lifecycle/atomic-file.ts';
import type {Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {typeUrl} from '../proto/types.ts';
import type {Cache, Change} from './cache.ts';
import type {Response} from './envelope.ts';
import {openSeal, readMachineId, type Seal} from './seal.ts';
import {encodeGroups, type Group, sizeOf} from './snapshot-encode.ts';
import {largestSnapshot, readSnapshot, type SnapshotFile, unusable, writeSnapshot} from './snapshot-file.ts';

export interface SnapshotStatus {
	readonly dir: string;
	/** Wall-clock time of what is on disk, as far as this agent knows; undefined before it has saved or restored. */
	readonly savedAt: Date | undefined;
	readonly bytes: number;
	/** Something has changed since; it is saved soon after Envoy has taken it. */
	readonly isBehind: boolean;
	/** Why nothing newer is saved, or what was there was not used. */
	readonly problem: string | undefined;
}

export interface SnapshotDeps {
	readonly dir: string;
	/** Whose configuration it is; another's is not used. */
	readonly owner: string;
	readonly cache: Cache;
	/** Whether somebody still wants a resource of a type that is asked for by name. */
	readonly isWanted: (url: string, name: string) => boolean;
	/** What Envoy refuses of a type: kept on disk is what it took before. */
	readonly refusedNames: (url: string) => ReadonlySet<string>;
	/** The mesh's ProxyConfig, an encoded Any, if it was ever sent. */
	readonly proxyConfig: () => Buffer | undefined;
	/** Whether all that is here comes from the control plane, and Envoy has taken it. */
	readonly isSettled: () => boolean;
	readonly clock: Clock;
	readonly log: Logger;
	readonly fs?: DurableFs;
	readonly machineId?: string;
}

/** What is restored, in the order in which it is to be taken in. */
export interface Restored {
	readonly savedAt: Date;
	readonly answers: readonly Response[];
}

/** Changes come in bursts; the disk gets what is left of them. */
const saveAfterMs = 2000;
/** With nothing on disk there is nothing to boot from. */
const firstSaveAfterMs = 300;
/** A disk that has refused is not asked again at once. */
const retryAfterMs = 60_000;

const restorable: ReadonlySet<string> = new Set([
	typeUrl.cluster,
	typeUrl.endpoint,
	typeUrl.listener,
	typeUrl.route,
	typeUrl.extensionConfig,
]);

/**
 * The last configuration that Envoy has taken, on disk: `base`, all of it, and `recent`, what has changed since, each
 * replaced as a whole, sealed and 0600. A change of a few endpoints costs a small file, however large the mesh is.
 */
export class Snapshot {
	readonly #deps: SnapshotDeps;
	readonly #fs: DurableFs;
	readonly #stopping = new AbortController();
	/** Changed since the base was written: type → names. Undefined: so much that the base is to be written anew. */
	#changed: Map<string, Set<string>> | undefined;
	#base: {mac: string; bytes: number} | undefined;
	#seal: Promise<Seal> | undefined;
	#isDirty = false;
	#working: Promise<void> | undefined;
	#aside: Promise<void> | undefined;
	#onSettled: (() => void) | undefined;
	#savedAt: Date | undefined;
	#bytes = 0;
	#problem: string | undefined;

	constructor(deps: SnapshotDeps) {
		this.#deps = deps;
		this.#fs = deps.fs ?? systemFs;
	}

	status(): SnapshotStatus {
		return {
			dir: this.#deps.dir,
			savedAt: this.#savedAt,
			bytes: this.#bytes,
			isBehind: this.#working !== undefined,
			problem: this.#problem,
		};
	}

	/** Takes note of what the control plane has changed; it is saved once Envoy has taken it. */
	note(url: string, {changed, removed}: Pick<Change, 'changed' | 'removed'>): void {
		if (changed.length + removed.length === 0 && this.#base) return;
		if (this.#base && isMuch(sizeOf(changed), this.#base)) this.#changed = undefined;
		this.#markChanged(url, [...changed, ...removed]);
	}

	noteProxyConfig(): void {
		this.#markChanged(typeUrl.proxyConfig, [{name: ''}]);
	}

	/** Something may have settled. */
	poke(): void {
		if (this.#onSettled && this.#deps.isSettled()) this.#onSettled();
	}

	/** What was saved, if it is ours and whole; what is not is put aside, and `status()` says why. */
	async restore(): Promise<Restored | undefined> {
		try {
			// The first start of a machine writes nothing for this.
			if (!existsSync(`${this.#deps.dir}/base`)) return undefined;
			const seal = await this.#openSeal();
			const base = await this.#read('base', seal);
			if (!base) return undefined;
			const recent = await this.#readRecent(base, seal);
			// Not the file itself, which would stay in memory for good.
			this.#base = {mac: base.mac, bytes: base.bytes};
			this.#bytes = base.bytes + (recent?.bytes ?? 0);
			this.#savedAt = new Date((recent ?? base).head.savedAt);
			this.#changed ??= new Map();
			const answers = [...base.answers, ...(recent?.answers ?? [])];
			for (const {typeUrl: url, resources, removed} of recent?.answers ?? [])
				this.#remember(url, [...resources.names, ...removed]);
			return {savedAt: this.#savedAt, answers};
		} catch (error) {
			this.#problem = `what was saved is not used: ${reasonOf(error)}`;
			this.#deps.log.warn({err: error}, 'saved configuration is not used');
			if (error instanceof AgentError) await this.#moveAside();
			return undefined;
		}
	}

	/** Never to be restored again: kept beside, for who wants to know. */
	async putAside(why: string): Promise<void> {
		this.#problem = `what was saved has been put aside: ${why}`;
		this.#savedAt = undefined;
		this.#base = undefined;
		this.#deps.log.error({dir: this.#deps.dir, reason: why}, 'saved configuration put aside');
		this.#aside = this.#moveAside();
		await this.#aside;
	}

	/** The last word, if it may be said now: what is left, and until when it held. */
	async stop(): Promise<void> {
		if (this.#base && this.#deps.isSettled()) this.#markDirty();
		this.#stopping.abort();
		this.#onSettled?.();
		await this.#aside;
		await this.#working;
	}

	#markChanged(url: string, resources: readonly {readonly name: string}[]): void {
		if (this.#changed)
			this.#remember(
				url,
				resources.map(({name}) => name),
			);
		this.#markDirty();
	}

	#markDirty(): void {
		this.#isDirty = true;
		this.#working ??= this.#work().finally(() => {
			this.#working = undefined;
		});
	}

	#remember(url: string, names: readonly string[]): void {
		if (!this.#changed) return;
		const known = this.#changed.get(url) ?? new Set();
		this.#changed.set(url, known);
		for (const name of names) known.add(name);
	}

	async #work(): Promise<void> {
		const {clock} = this.#deps;
		const {signal} = this.#stopping;
		const rest = (ms: number) => clock.sleep(ms, signal).catch(() => {}); // stopped: now, then
		while (this.#isDirty) {
			await rest(this.#savedAt ? saveAfterMs : firstSaveAfterMs);
			await this.#untilSettled();
			if (!this.#deps.isSettled()) return; // Stopped in the middle: what is on disk is older, and whole.
			this.#isDirty = false;
			if (await this.#save()) continue;
			this.#isDirty = true;
			if (signal.aborted) return;
			await rest(retryAfterMs);
		}
	}

	async #untilSettled(): Promise<void> {
		while (!this.#deps.isSettled() && !this.#stopping.signal.aborted) {
			await new Promise<void>(resolve => {
				this.#onSettled = resolve;
			});
			this.#onSettled = undefined;
		}
	}

	async #save(): Promise<boolean> {
		const {cache, log, dir} = this.#deps;
		try {
			if (cache.liveBytes > largestSnapshot) throw new Error(`larger than ${largestSnapshot} bytes`);
			await this.#fs.mkdir(dir, {mode: 0o700, recursive: true});
			const seal = await this.#openSeal();
			const changes = this.#base && this.#changed && this.#changesSince(this.#changed);
			await (changes && !isMuch(sizeOf(changes.flatMap(({resources}) => resources)), this.#base!)
				? this.#saveRecent(changes, seal)
				: this.#saveBase(seal));
			this.#problem = undefined;
			return true;
		} catch (error) {
			if (this.#problem === undefined) log.warn({err: error, dir}, 'configuration is not saved');
			this.#problem = `not saved: ${reasonOf(error)}`;
			return false;
		}
	}

	async #saveBase(seal: Seal): Promise<void> {
		const {dir} = this.#deps;
		// All that is to be written is taken hold of in this turn: a resource never changes, only the cache does.
		const groups = this.#everything();
		const refused = [...this.#refused()];
		this.#changed = new Map();
		// Should this fail, what has changed since the one on disk is no longer known.
		this.#base = undefined;
		const carried = refused.length > 0 ? await this.#carryOver(refused, seal) : [];
		const head = this.#head(seal);
		const {mac, bytes} = await writeSnapshot(
			`${dir}/base`,
			head,
			encodeGroups([...groups, ...carried]),
			seal,
			this.#fs,
		);
		this.#base = {mac, bytes};
		this.#bytes = bytes;
		this.#savedAt = new Date(head.savedAt);
		// One that is left by a power cut names another base, and is passed over.
		await this.#fs.rm(`${dir}/recent`, {force: true});
	}

	async #saveRecent(groups: readonly Group[], seal: Seal): Promise<void> {
		const head = {...this.#head(seal), base: this.#base!.mac};
		const {bytes} = await writeSnapshot(`${this.#deps.dir}/recent`, head, encodeGroups(groups), seal, this.#fs);
		this.#bytes = this.#base!.bytes + bytes;
		this.#savedAt = new Date(head.savedAt);
	}

	#head(seal: Seal) {
		const {owner, clock} = this.#deps;
		return {seal: seal.id, owner, savedAt: clock.now().toISOString()};
	}

	#everything(): Group[] {
		const {cache, proxyConfig, isWanted} = this.#deps;
		const groups: Group[] = [];
		for (const [url, {resources}] of cache.types()) {
			if (!restorable.has(url)) continue;
			const refused = this.#deps.refusedNames(url);
			const kept = [...resources.values()].filter(({name}) => isWanted(url, name) && !refused.has(name));
			groups.push({url, resources: kept, removed: []});
		}
		const config = proxyConfig();
		if (config)
			groups.push({url: typeUrl.proxyConfig, resources: [{name: '', any: config, size: config.length}], removed: []});
		return groups;
	}

	#changesSince(changed: ReadonlyMap<string, ReadonlySet<string>>): Group[] {
		const {cache, proxyConfig} = this.#deps;
		const groups: Group[] = [];
		for (const [url, names] of changed) {
			if (url === typeUrl.proxyConfig) {
				const config = proxyConfig();
				if (config) groups.push({url, resources: [{name: '', any: config, size: config.length}], removed: []});
				continue;
			}
			if (!restorable.has(url)) continue;
			const {resources} = cache.type(url);
			const refused = this.#deps.refusedNames(url);
			const removed = [...names].filter(name => !resources.has(name));
			const kept = [...names].filter(name => !refused.has(name)).flatMap(name => resources.get(name) ?? []);
			groups.push({url, resources: kept, removed});
		}
		return groups;
	}

	*#refused(): Generator<{readonly url: string; readonly name: string}> {
		const {cache, refusedNames} = this.#deps;
		for (const [url] of cache.types()) for (const name of refusedNames(url)) yield {url, name};
	}

	/** What Envoy took before it refused what came after, from the files that are about to be replaced. */
	async #carryOver(refused: readonly {readonly url: string; readonly name: string}[], seal: Seal): Promise<Group[]> {
		const base = await this.#read('base', seal).catch(() => undefined);
		const recent = base && (await this.#readRecent(base, seal));
		const answers = [...(base?.answers ?? []), ...(recent?.answers ?? [])];
		return refused.flatMap(({url, name}) => {
			let any: Buffer | undefined;
			for (const {typeUrl: type, resources} of answers) {
				const index = type === url ? resources.names.indexOf(name) : -1;
				if (index >= 0) any = resources.any(index);
			}
			return any ? [{url, resources: [{name, any, size: any.length}], removed: []}] : [];
		});
	}

	async #read(name: 'base' | 'recent', seal: Seal): Promise<SnapshotFile | undefined> {
		const {dir, owner} = this.#deps;
		const path = `${dir}/${name}`;
		const file = await readSnapshot(path, seal);
		if (file && file.head.owner !== owner) throw unusable(path, `belongs to ${file.head.owner}, and this is ${owner}`);
		return file;
	}

	/** The base is good without it. */
	async #readRecent({mac}: SnapshotFile, seal: Seal): Promise<SnapshotFile | undefined> {
		try {
			const recent = await this.#read('recent', seal);
			return recent?.head.base === mac ? recent : undefined;
		} catch (error) {
			this.#deps.log.warn({err: error}, 'latest changes of the saved configuration are not used');
			return undefined;
		}
	}

	#openSeal(): Promise<Seal> {
		const {dir, machineId} = this.#deps;
		const open = async () => {
			await this.#fs.mkdir(dir, {mode: 0o700, recursive: true});
			await this.#removeLeftovers();
			return openSeal(dir, machineId ?? (await readMachineId()), this.#fs);
		};
		this.#seal ??= open().catch((error: unknown) => {
			this.#seal = undefined;
			throw error;
		});
		return this.#seal;
	}

	/** Of agents that were killed while they wrote; nobody else writes here. */
	async #removeLeftovers(): Promise<void> {
		const {dir} = this.#deps;
		const left = (await this.#fs.readdir(dir)).filter(name => name.startsWith(temporaryPrefix));
		for (const name of left) await this.#fs.rm(`${dir}/${name}`, {force: true});
	}

	async #moveAside(): Promise<void> {
		const {dir, log} = this.#deps;
		try {
			await rm(`${dir}/recent`, {force: true});
			await rename(`${dir}/base`, `${dir}/refused`);
		} catch (error) {
			if (systemCode(error) !== 'ENOENT') log.warn({err: error, dir}, 'could not put the saved configuration aside');
		}
	}
}

/** Whether changes of this size are better written with all the rest. */
const isMuch = (changedBytes: number, base: {readonly bytes: number}): boolean => changedBytes * 2 >= base.bytes;
