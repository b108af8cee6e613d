import {randomUUID} from 'node:crypto';
import {readFile} from 'node:fs/promises';
import {join} from 'node:path';
import {reasonOf, systemCode} from '../errors.ts';
import {systemFs, writeFileAtomic} from '../lifecycle/atomic-file.ts';
import type {Logger} from '../log.ts';
import {isOtherMachine, type MachineMarks} from './machine.ts';

/** Which machine we are among all, and which entries we may have made; kept over reboots. */
export interface OwnEntries {
	readonly instance: string;
	/** `NAMESPACE/NAME`. */
	list(): readonly string[];
	/** Before it is made, so that one whose maker is killed is known to the next. */
	add(entry: string): Promise<void>;
	remove(entry: string): Promise<void>;
}

interface OwnRecord {
	readonly format: 1;
	readonly instance: string;
	readonly marks: MachineMarks;
	readonly entries: readonly string[];
}

const format = 1;
/** Addresses of one machine that all change while the API is away. */
const mostEntries = 64;

export interface OwnEntriesDeps {
	readonly stateDir: string;
	readonly marks: MachineMarks;
	readonly log: Logger;
}

/** A copy of a disk gets an instance of its own: what the record names belongs to the machine it was copied from. */
export async function openOwnEntries({stateDir, marks, log}: OwnEntriesDeps): Promise<OwnEntries> {
	const path = join(stateDir, 'instance.json');
	const before = await load(path).catch((error: unknown) => {
		log.warn(
			{
				reason: reasonOf(error),
				path,
				hint: "delete the entry that the machine had, should it be refused as somebody else's",
			},
			'which machine this is cannot be read: it is a new one from now on',
		);
		return undefined;
	});
	const isCopy = before !== undefined && isOtherMachine(before.marks, marks);
	if (isCopy)
		log.warn({was: before.instance}, 'the disk was copied from another machine: its entry is left to that one');
	const known = isCopy ? undefined : before;
	const instance = known?.instance ?? randomUUID();
	let entries = known?.entries ?? [];
	let isToldOf = false;
	const save = async (): Promise<void> => {
		try {
			await systemFs.mkdir(stateDir, {mode: 0o700, recursive: true});
			const record: OwnRecord = {format, instance, marks, entries};
			await writeFileAtomic(path, `${JSON.stringify(record)}\n`, 0o600);
			isToldOf = false;
		} catch (error) {
			// Being registered comes before being remembered.
			if (!isToldOf) log.warn({err: error, path}, 'our entry is not remembered over a restart');
			isToldOf = true;
		}
	};
	if (JSON.stringify(known?.marks) !== JSON.stringify(marks)) await save();
	return {
		instance,
		list: () => entries,
		add: async entry => {
			if (entries.includes(entry)) return;
			entries = [...entries, entry].slice(-mostEntries);
			await save();
		},
		remove: async entry => {
			if (!entries.includes(entry)) return;
			entries = entries.filter(each => each !== entry);
			await save();
		},
	};
}

/** undefined: there is none. @throws when it cannot be read */
async function load(path: string): Promise<OwnRecord | undefined> {
	let text: string;
	try {
		text = await readFile(path, 'utf8');
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return undefined;
		throw error;
	}
	const record = JSON.parse(text) as Partial<OwnRecord>;
	const {instance, marks, entries} = record;
	const isWhole =
		record.format === format &&
		typeof instance === 'string' &&
		/^[\w-]{8,64}$/.test(instance) &&
		Array.isArray(marks?.macs) &&
		Array.isArray(entries) &&
		entries.every(each => typeof each === 'string' && /^[a-z0-9][a-z0-9-]*\/[a-z0-9][a-z0-9.-]*$/.test(each));
	if (!isWhole) throw new Error('is not what was written, or of another version');
	return record as OwnRecord;
}
