import {existsSync} from 'node:fs';
import {writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import type {LocalWorkload} from '../../../src/sandbox/local-workload.ts';

const unshare = ['/usr/bin/unshare', '/bin/unshare'].find(path => existsSync(path));

/** Mounting needs root; elsewhere these tests have nothing to stand on. */
export const canMount = process.geteuid!() === 0 && unshare !== undefined;

/**
 * A program to be started in the agent's place: it mounts by a script that only this process and its children see the
 * effect of, and becomes the agent.
 * @param script - for sh, with the agent's command line as its arguments
 */
export async function mountedAgent(directory: string, agentPath: string, script: string): Promise<string> {
	const path = join(directory, 'mounted-agent.cjs');
	const argv = ['unshare', '--mount', '/bin/sh', '-ec', `${script}\nexec "$@"`, 'sh'];
	await writeFile(
		path,
		`const argv = ${JSON.stringify(argv)};
process.removeAllListeners('warning');
process.on('warning', () => {});
process.execve(${JSON.stringify(unshare)}, [...argv, process.execPath, ${JSON.stringify(agentPath)}, ...process.argv.slice(2)], process.env);
`,
	);
	return path;
}

/** A path as the running agent sees it. */
export const seenBy = (workload: LocalWorkload, path: string): string => `/proc/${workload.pid}/root${path}`;
