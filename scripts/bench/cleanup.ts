import {rmSync} from 'node:fs';

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
