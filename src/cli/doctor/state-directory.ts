import {statfsSync, statSync} from 'node:fs';
import {dirname} from 'node:path';
import {systemCode} from '../../errors.ts';
import {type Finding, fail, ok, skip, warn, withConfig} from './types.ts';

/** Two generations of certificates, Envoy's log twice at its full size, and room to write beside them. */
const leastBytes = 200 * 2 ** 20;

/** Whether the state directory is private and its file system has room. */
export const stateDirectory = withConfig('state directory', async ({stateDir}): Promise<readonly Finding[]> => {
	const findings: Finding[] = [];
	const present = nearest(stateDir);
	try {
		const {mode, uid} = statSync(present);
		if (present === stateDir && (mode & 0o077) !== 0) {
			const text = `${stateDir} has mode 0${(mode & 0o777).toString(8)}, and holds private keys`;
			findings.push(warn(text, `chmod 0700 ${stateDir}`));
		}
		const {bavail, bsize, ffree, files} = statfsSync(present);
		const free = bavail * bsize;
		if (files > 0 && ffree === 0) findings.push(fail(`${present}: no inode is free`, 'remove files'));
		if (free < 2 ** 20) findings.push(fail(`${present}: the file system is full`, `make room: df -h ${present}`));
		else if (free < leastBytes)
			findings.push(warn(`${present}: ${Math.floor(free / 2 ** 20)} MiB are free`, `make room: df -h ${present}`));
		if (findings.length > 0) return findings;
		const owner = present === stateDir ? `owner uid ${uid}, ` : 'not made yet, ';
		return [ok(`${stateDir}: ${owner}${Math.floor(free / 2 ** 20)} MiB free`)];
	} catch (error) {
		return [skip(`${present} cannot be looked at: ${systemCode(error) ?? String(error)}`)];
	}
});

/** The directory, or the nearest above it that is there. */
function nearest(path: string): string {
	try {
		statSync(path);
		return path;
	} catch (error) {
		if (systemCode(error) !== 'ENOENT' || dirname(path) === path) return path;
		return nearest(dirname(path));
	}
}
