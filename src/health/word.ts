import {readFile} from 'node:fs/promises';
import {join} from 'node:path';
import {reasonOf, systemCode} from '../errors.ts';
import {systemFs, writeFileAtomic} from '../lifecycle/atomic-file.ts';

/** What was said with `onramp ready` or `onramp unready`, last. */
export interface Word {
	readonly said: 'ready' | 'unready';
	readonly reason: string;
	readonly at: Date;
}

/** Keeps it over restarts of the agent. That the application is ready is forgotten with a reboot, which has ended it. */
export interface WordKeeper {
	load(): Promise<Word | undefined>;
	/** @throws system errors */
	save(word: Word): Promise<void>;
}

const format = 1;
const bootIdPath = '/proc/sys/kernel/random/boot_id';

export function keepWord(directory: string): WordKeeper {
	const path = join(directory, 'said.json');
	const bootId = async () => (await readFile(bootIdPath, 'latin1')).trim();
	return {
		load: async () => {
			let text: string;
			try {
				text = await readFile(path, 'utf8');
			} catch (error) {
				if (systemCode(error) === 'ENOENT') return undefined;
				return unreadable(path, error);
			}
			try {
				const record = JSON.parse(text) as {format: unknown; bootId: unknown; word: {said: unknown; at: string}};
				if (record.format !== format) throw new Error(`is of another version (${String(record.format)})`);
				const {said, at, reason} = record.word as unknown as Record<'said' | 'at' | 'reason', unknown>;
				if ((said !== 'ready' && said !== 'unready') || typeof reason !== 'string')
					throw new Error('is not what was written');
				if (said === 'ready' && record.bootId !== (await bootId())) return undefined;
				return {said, reason, at: new Date(String(at))};
			} catch (error) {
				return unreadable(path, error);
			}
		},
		save: async word => {
			await systemFs.mkdir(directory, {mode: 0o700, recursive: true});
			const record = {format, bootId: await bootId(), word: {...word, at: word.at.toISOString()}};
			await writeFileAtomic(path, `${JSON.stringify(record)}\n`, 0o600);
		},
	};
}

/** Somebody has said something; traffic for a machine that was taken out is worse than none for one that was not. */
function unreadable(path: string, error: unknown): Word {
	return {said: 'unready', reason: `what was said last cannot be read (${path}: ${reasonOf(error)})`, at: new Date(0)};
}
