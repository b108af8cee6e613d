import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {systemFs, writeFileAtomic} from '../lifecycle/atomic-file.ts';
import type {CloudFacts} from './providers.ts';

/** What the cloud said last, over reboots. */
export interface KeptFacts {
	readonly facts: CloudFacts;
	/** Of the machine it said it of. */
	readonly marks: unknown;
}

const format = 1;
const pathIn = (stateDir: string): string => join(stateDir, 'cloud.json');

/** undefined: there is none, or none that can be used; the service is asked anyway. */
export function loadKept(stateDir: string): KeptFacts | undefined {
	try {
		const {facts, marks, ...record} = JSON.parse(readFileSync(pathIn(stateDir), 'utf8')) as Partial<KeptFacts> & {
			format?: unknown;
		};
		if (record.format !== format || typeof facts !== 'object' || facts === null) return undefined;
		const {cloud, locality, instanceId, instanceType, address} = facts;
		const isWhole = [cloud, locality, instanceId, instanceType, address].every(each => typeof each === 'string');
		return isWhole ? {facts: {cloud, locality, instanceId, instanceType, address}, marks} : undefined;
	} catch {
		return undefined;
	}
}

/** @throws system errors */
export async function saveKept(stateDir: string, kept: KeptFacts): Promise<void> {
	await systemFs.mkdir(stateDir, {mode: 0o700, recursive: true});
	await writeFileAtomic(pathIn(stateDir), `${JSON.stringify({format, ...kept})}\n`, 0o600);
}
