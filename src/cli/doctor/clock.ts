import {execFile} from 'node:child_process';
import {readBootstrapClaims} from './token-claims.ts';
import {type Check, type Finding, ok, skip, warn} from './types.ts';

/** Clocks of a mesh are some seconds apart; more than this and certificates begin in the future. */
const toleranceMs = 60_000;
const setClock = 'set the clock: timedatectl set-ntp true';

/** Whether the clock is kept by somebody, and not behind what the cluster has dated. TLS 1.3 itself tells no time. */
export const clock: Check = {
	name: 'clock',
	run: async ({loaded, now}) => {
		const findings: Finding[] = [];
		const issuedAt = loaded && readBootstrapClaims(loaded.config.controlPlane.tokenPath)?.issuedAt;
		if (issuedAt && issuedAt.getTime() - now.getTime() > toleranceMs) {
			const message = `it is ${now.toISOString()} here, and the token was made at ${issuedAt.toISOString()}: the clock is behind`;
			findings.push(warn(message, setClock));
		}
		const synchronized = await askTimedatectl();
		if (synchronized === 'no') findings.push(warn('nothing keeps the clock: NTPSynchronized=no', setClock));
		if (findings.length > 0) return findings;
		return synchronized === 'yes'
			? [ok(`synchronized, ${now.toISOString()}`)]
			: [skip(`${now.toISOString()}; whether something keeps it cannot be asked here`)];
	},
};

/** `yes`, `no`, or undefined where there is no timedatectl that could say. */
function askTimedatectl(): Promise<string | undefined> {
	return new Promise(resolve => {
		execFile('timedatectl', ['show', '--property=NTPSynchronized', '--value'], {timeout: 5000}, (error, stdout) => {
			resolve(error ? undefined : stdout.trim());
		});
	});
}
