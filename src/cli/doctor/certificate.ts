import {X509Certificate} from 'node:crypto';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import type {Config} from '../../config/index.ts';
import {reasonOf, systemCode} from '../../errors.ts';
import {type Check, type Finding, fail, ok, type Patient, skip, warn, withConfig} from './types.ts';

/** The workload certificate: of the running agent, else what is on disk. */
export const certificate: Check = withConfig('certificate', async (config, patient): Promise<readonly Finding[]> => {
	const running = ofAgent(patient);
	if (running) {
		const {state, spiffeId, notAfter} = running;
		if (state === 'serving') return [ok(`${spiffeId} until ${notAfter}`)];
		if (state === 'serving-stale')
			return [warn(`${spiffeId} until ${notAfter}, and rotation fails`, 'see last error in onramp status')];
		return [fail(`none that is valid: ${state}`, 'see gate identity in onramp status')];
	}
	const path = join(config.identity.stateDir, 'current', 'cert-chain.pem');
	const stored = readStored(path);
	if (typeof stored === 'string') return [skip(stored)];
	const until = stored.validTo;
	return new Date(until) > patient.now
		? [ok(`on disk, until ${new Date(until).toISOString()}`)]
		: [warn(`the one on disk has ended at ${new Date(until).toISOString()}`, 'a token is needed for a new one')];
});

/** Whether one is there that is valid now. */
export function hasCertificate(patient: Patient, config: Config): boolean {
	const running = ofAgent(patient);
	if (running) return running.state === 'serving' || running.state === 'serving-stale';
	const stored = readStored(join(config.identity.stateDir, 'current', 'cert-chain.pem'));
	return typeof stored !== 'string' && new Date(stored.validTo) > patient.now;
}

interface RunningIdentity {
	readonly state: string;
	readonly spiffeId?: string;
	readonly notAfter?: string;
}

const ofAgent = ({report}: Patient): RunningIdentity | undefined =>
	report?.parts['identity'] as RunningIdentity | undefined;

/** The leaf, or why there is none. */
function readStored(path: string): X509Certificate | string {
	try {
		return new X509Certificate(readFileSync(path));
	} catch (error) {
		return systemCode(error) === 'ENOENT' ? 'none yet' : `${path} cannot be read: ${reasonOf(error)}`;
	}
}
