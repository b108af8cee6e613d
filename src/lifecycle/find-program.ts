import {accessSync, constants} from 'node:fs';

/** Where distributions put the system's tools. PATH is not asked: other programs share their names, and we may be root. */
export const toolDirectories = ['/usr/sbin', '/usr/bin', '/sbin', '/bin', '/usr/local/sbin', '/usr/local/bin'] as const;

const found = new Map<string, string | undefined>();

/** Path of a tool of the system's, or undefined when this machine does not have it. */
export function findProgram(name: string): string | undefined {
	if (!found.has(name)) found.set(name, lookFor(name));
	return found.get(name);
}

function lookFor(name: string): string | undefined {
	for (const directory of toolDirectories) {
		const path = `${directory}/${name}`;
		try {
			accessSync(path, constants.X_OK);
			return path;
		} catch {
			// Not there, or not for us: the next directory may have it.
		}
	}
	return undefined;
}
