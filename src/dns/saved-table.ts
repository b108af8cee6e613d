import {createHash} from 'node:crypto';
import {readFile, stat} from 'node:fs/promises';
import {dirname} from 'node:path';
import {reasonOf, systemCode} from '../errors.ts';
import {type DurableFs, systemFs, writeFileAtomic} from '../lifecycle/atomic-file.ts';
import type {Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {largestTable} from './name-table.ts';

/** `onramp names 1`, a line feed, the hash of what follows it, when it was received (ms since the epoch), the table. */
const magic = Buffer.from('onramp names 1\n', 'latin1');
const hashLength = 32;
const headLength = magic.length + hashLength + 8;

export interface SavedTable {
	/** istio.networking.nds.v1.NameTable, encoded. */
	readonly table: Buffer;
	readonly receivedAt: Date;
}

/**
 * The table as it was last saved; undefined when none was.
 * @throws Error when there is a file and it cannot be used: it is not ours, of another version, or damaged
 */
export async function loadTable(path: string): Promise<SavedTable | undefined> {
	const bytes = await readBounded(path);
	if (!bytes) return undefined;
	if (!bytes.subarray(0, magic.length).equals(magic) || bytes.length < headLength)
		throw new Error(`${path} is not a name table of this version`);
	const body = bytes.subarray(magic.length + hashLength);
	if (!hash(body).equals(bytes.subarray(magic.length, magic.length + hashLength)))
		throw new Error(`${path} is damaged: its checksum is wrong`);
	return {table: body.subarray(8), receivedAt: new Date(body.readDoubleBE(0))};
}

async function readBounded(path: string): Promise<Buffer | undefined> {
	try {
		const {size} = await stat(path);
		if (size > largestTable + headLength) throw new Error(`${path} is larger than any name table`);
		return await readFile(path);
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return undefined;
		throw error;
	}
}

/** Replaces the saved table as a whole; readable to nobody else, as the mesh's names are nobody else's. */
export async function saveTable(path: string, {table, receivedAt}: SavedTable, fs = systemFs): Promise<void> {
	await fs.mkdir(dirname(path), {mode: 0o700, recursive: true});
	const body = Buffer.allocUnsafe(8 + table.length);
	body.writeDoubleBE(receivedAt.getTime(), 0);
	table.copy(body, 8);
	await writeFileAtomic(path, Buffer.concat([magic, hash(body), body]), 0o600, fs);
}

/** Tables come in bursts while a mesh changes; the disk gets the last. */
const saveAfterMs = 1000;
/** With nothing on disk there is nothing to answer from after a power cut. */
const firstSaveAfterMs = 100;

export interface TableSaverDeps {
	readonly path: string;
	readonly clock: Clock;
	readonly log: Logger;
	readonly fs?: DurableFs;
}

/** Saves behind the scenes, one at a time, the newest only. */
export class TableSaver {
	readonly #deps: TableSaverDeps;
	readonly #stopping = new AbortController();
	#next: SavedTable | undefined;
	#saved = '';
	#working: Promise<void> | undefined;
	/** Why the last one could not be saved. */
	problem: string | undefined;

	constructor(deps: TableSaverDeps) {
		this.#deps = deps;
	}

	save(table: SavedTable): void {
		this.#next = table;
		this.#working ??= this.#work().finally(() => {
			this.#working = undefined;
		});
	}

	/** Saves what is left at once. */
	async stop(): Promise<void> {
		this.#stopping.abort();
		await this.#working;
	}

	async #work(): Promise<void> {
		while (this.#next) {
			const afterMs = this.#saved === '' ? firstSaveAfterMs : saveAfterMs;
			await this.#deps.clock.sleep(afterMs, this.#stopping.signal).catch(() => {}); // stopped: now, then
			const table = this.#next;
			this.#next = undefined;
			await this.#saveOne(table);
		}
	}

	async #saveOne(table: SavedTable): Promise<void> {
		const {path, log, fs} = this.#deps;
		const digest = hash(table.table).toString('hex');
		// The same again, as after each reconnect, is not worth a write.
		if (digest === this.#saved) return;
		try {
			await saveTable(path, table, fs);
			this.#saved = digest;
			this.problem = undefined;
		} catch (error) {
			if (this.problem === undefined) log.warn({err: error, path}, 'name table is not saved');
			this.problem = `name table is not saved: ${reasonOf(error)}`;
		}
	}
}

const hash = (bytes: Buffer): Buffer => createHash('sha256').update(bytes).digest();
