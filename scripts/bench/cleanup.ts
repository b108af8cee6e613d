import {readdirSync, readFileSync, rmSync} from 'node:fs';

/**
 * What must be gone when the bench ends, however it ends. Everything is synchronous, so that it also works in the
 * process's last moment; only processes and directories that the bench itself made are ever put here.
 */
const kills = new Set<() => void>();
const directories = new Set<string>();

/** Returns how to take it off the list again. */
export function killAtEnd(kill: () => void): () => void {
	kills.add(kill);
	return () => kills.delete(kill);
}

export function removeAtEnd(directory: string): void {
	directories.add(directory);
}

export function installCleanUp(): void {
	process.on('exit', () => {
		for (const kill of kills) kill();
		for (const directory of directories) killAllIn(directory);
		for (const directory of directories) rmSync(directory, {recursive: true, force: true, maxRetries: 5});
	});
	// 128 + number of the signal, as a shell reports it.
	for (const [name, code] of [
		['SIGINT', 130],
		['SIGTERM', 143],
		['SIGHUP', 129],
	] as const) {
		process.once(name, () => process.exit(code));
	}
}

/** SIGKILL to a process, or with a negative number to its group; gone already is fine. */
export function killNow(pid: number | undefined): void {
	if (pid === undefined) return;
	try {
		process.kill(pid, 'SIGKILL');
	} catch {
		// It has ended before.
	}
}

/**
 * SIGKILL to every process that was started with a path below this directory. Only what the bench itself starts can
 * name its temporary directory; so this also finds an Envoy that its agent, killed a moment ago, had not yet noted.
 */
export function killAllIn(directory: string): void {
	for (const name of readdirSync('/proc')) {
		if (!/^\d+$/.test(name) || Number(name) === process.pid) continue;
		try {
			const words = readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0');
			if (words.some(word => word.startsWith(`${directory}/`))) killNow(Number(name));
		} catch {
			// It has ended meanwhile.
		}
	}
}
