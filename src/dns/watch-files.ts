import {type FSWatcher, watch} from 'node:fs';
import {readFile, realpath} from 'node:fs/promises';
import {dirname} from 'node:path';
import {reasonOf, systemCode} from '../errors.ts';

/** What a file holds: text, that it is not there, or why it could not be looked at. */
export type Look =
	| {readonly kind: 'text'; readonly text: string}
	| {readonly kind: 'absent'}
	| {readonly kind: 'unreadable'; readonly reason: string};

export interface FilesWatch {
	/** Looks now. */
	look(): Promise<void>;
	close(): void;
}

/** Programs that write resolv.conf do so in several steps. */
const debounceMs = 50;
/** What the kernel does not tell: a mount over the folder, no watch left. */
const pollMs = 5000;
/** A resolv.conf beyond this is none. */
const mostBytes = 256 * 1024;

/**
 * Reads these files at once and whenever one may have changed, and tells when their content has. It watches folders, as
 * files are replaced by rename, and those where symbolic links lead to, since that is where they change.
 */
export function watchFiles(paths: readonly string[], onChange: (looks: readonly Look[]) => void): FilesWatch {
	const watchers = new Map<string, FSWatcher>();
	let isClosed = false;
	let debounce: NodeJS.Timeout | undefined;
	let last = '';
	let looking: Promise<void> = Promise.resolve();
	const lookOnce = async () => {
		await watchFolders();
		const looks = await Promise.all(paths.map(read));
		const now = JSON.stringify(looks);
		if (isClosed || now === last) return;
		last = now;
		onChange(looks);
	};
	// One after the other, so that an older read cannot win over a newer one.
	const look = () => {
		looking = looking.then(() => (isClosed ? undefined : lookOnce()));
		return looking;
	};
	const lookSoon = () => {
		clearTimeout(debounce);
		if (!isClosed) debounce = setTimeout(look, debounceMs).unref();
	};
	const watchFolders = async () => {
		const real = await Promise.all(paths.map(path => realpath(path).catch(() => path)));
		const wanted = new Set([...paths, ...real].map(path => dirname(path)));
		for (const [folder, watcher] of watchers) {
			if (wanted.has(folder)) continue;
			watcher.close();
			watchers.delete(folder);
		}
		for (const folder of wanted) {
			if (watchers.has(folder) || isClosed) continue;
			try {
				const watcher = watch(folder, {persistent: false}, lookSoon);
				watcher.on('error', () => {
					watcher.close();
					watchers.delete(folder);
				});
				watchers.set(folder, watcher);
			} catch {
				// No such folder, or no watch left: the poll looks again.
			}
		}
	};
	const poll = setInterval(look, pollMs).unref();
	void look();
	return {
		look,
		close() {
			isClosed = true;
			clearTimeout(debounce);
			clearInterval(poll);
			for (const watcher of watchers.values()) watcher.close();
			watchers.clear();
		},
	};
}

async function read(path: string): Promise<Look> {
	try {
		const bytes = await readFile(path);
		return {kind: 'text', text: bytes.subarray(0, mostBytes).toString('latin1')};
	} catch (error) {
		return systemCode(error) === 'ENOENT' ? {kind: 'absent'} : {kind: 'unreadable', reason: reasonOf(error)};
	}
}
