import {execFileSync} from 'node:child_process';
import {writeFileSync} from 'node:fs';
import koffi from 'koffi';

/** CLONE_NEWNET, from linux/sched.h. */
const newNetwork = 0x40000000;

/**
 * Gives this process a network of its own, loopback only, which ends with it; children made from here on share it.
 * @returns why not, where that is not permitted
 */
export function enterOwnNetwork(sysctls: Readonly<Record<string, string>> = {}): string | undefined {
	const unshare = koffi.load('libc.so.6').func('int unshare(int)') as (flags: number) => number;
	if (unshare(newNetwork) !== 0) return 'a network of its own is not permitted here';
	execFileSync('ip', ['link', 'set', 'lo', 'up']);
	for (const [name, value] of Object.entries(sysctls)) writeFileSync(`/proc/sys/${name.replaceAll('.', '/')}`, value);
	return undefined;
}
