import type {Clock} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {hashOf} from './adopt.ts';
import {findRefusedFlag} from './arguments.ts';
import type {EnvoyProcess} from './envoy-process.ts';
import {bootId} from './linux-process.ts';
import {loadRecord, type ProcessRecord, type RecordedProcess, saveRecord} from './record.ts';
import type {Slot} from './slot.ts';

export interface RecordKeeperDeps {
	readonly path: string;
	readonly clock: Clock;
	readonly log: Logger;
}

/** What the next agent is to know of Envoy's processes, and which optional flags each binary is known to refuse. */
export class RecordKeeper {
	readonly #deps: RecordKeeperDeps;
	#record: ProcessRecord = {binary: '', refusedFlags: []};
	readonly #refused = new Map<string, readonly string[]>();

	constructor(deps: RecordKeeperDeps) {
		this.#deps = deps;
	}

	get current(): ProcessRecord {
		return this.#record;
	}

	/** Takes over what an earlier agent has left. */
	load(): void {
		this.#record = loadRecord(this.#deps.path) ?? this.#record;
		this.#refused.set(this.#record.binary, this.#record.refusedFlags);
	}

	/** What one file refused says nothing about another at its place. */
	refusedFlags(binary: string): readonly string[] {
		return this.#refused.get(binary) ?? [];
	}

	/** Whether the log tells that the last start failed for a flag that can be left out the next time. */
	learnRefusedFlag(binary: string, logTail: readonly string[]): boolean {
		const refused = findRefusedFlag(logTail);
		const known = this.refusedFlags(binary);
		if (refused === undefined || known.includes(refused)) return false;
		this.#deps.log.info({flag: refused}, 'envoy does not know an optional flag; starting it without');
		this.#refused.set(binary, [...known, refused]);
		return true;
	}

	/** The binary that runs now; on disk with the next `save`. */
	noteBinary(binary: string): void {
		this.#record = {...this.#record, binary, refusedFlags: this.refusedFlags(binary)};
	}

	describe({identity}: EnvoyProcess, {config, bootstrap}: Slot): RecordedProcess {
		return {
			...identity,
			argv: [...identity.argv],
			bootId: bootId(),
			adminSocket: config.adminSocketPath,
			bootstrapHash: hashOf(bootstrap),
			startedAt: this.#deps.clock.now().toISOString(),
		};
	}

	save(change: Partial<ProcessRecord>): void {
		this.#record = {...this.#record, ...change};
		try {
			saveRecord(this.#deps.path, this.#record);
		} catch (err) {
			// The next agent finds Envoy by its command line then.
			this.#deps.log.warn({err}, 'record of the envoy process not written');
		}
	}
}
