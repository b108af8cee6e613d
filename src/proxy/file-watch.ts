import {type FSWatcher, watch} from 'node:fs';
import {dirname} from 'node:path';

export interface FileWatch {
	close(): void;
}

/** Writers that replace several files do it within this time; a look in between is repeated. */
const debounceMs = 100;
/** What the kernel does not tell: network file systems, a folder that did not exist yet. */
const pollMs = 10_000;

/**
 * Calls `look` at once, after each change near these files, and every ten seconds. It watches the folders, because
 * files are replaced by rename or by swapping a symbolic link, which a watch on the file itself would miss.
 */
export function watchFiles(paths: readonly string[], look: () => Promise<void>): FileWatch {
	const watchers = new Map<string, FSWatcher>();
	let isClosed = false;
	let debounce: NodeJS.Timeout | undefined;
	let looking: Promise<void> = Promise.resolve();
	const lookNow = () => {
		openWatchers();
		// One after the other, so that an older read cannot win over a newer one.
		looking = looking.then(() => (isClosed ? undefined : look())).catch(() => {});
	};
	const lookSoon = () => {
		clearTimeout(debounce);
		if (!isClosed) debounce = setTimeout(lookNow, debounceMs).unref();
	};
	const openWatchers = () => {
		for (const folder of new Set(paths.map(path => dirname(path)))) {
			if (watchers.has(folder) || isClosed) continue;
			try {
				const watcher = watch(folder, {persistent: false}, lookSoon);
				watcher.on('error', () => drop(folder));
				watchers.set(folder, watcher);
			} catch {
				// No such folder yet, or no inotify watch left: the poll looks again.
			}
		}
	};
	const drop = (folder: string) => {
		watchers.get(folder)?.close();
		watchers.delete(folder);
	};
	const poll = setInterval(lookNow, pollMs).unref();
	lookNow();
	return {
		close() {
			isClosed = true;
			clearTimeout(debounce);
			clearInterval(poll);
			for (const folder of [...watchers.keys()]) drop(folder);
		},
	};
}
