import {createHmac, type Hmac, randomBytes} from 'node:crypto';
import {readFile} from 'node:fs/promises';
import {systemCode} from '../errors.ts';
import {type DurableFs, writeFileAtomic} from '../lifecycle/atomic-file.ts';

/**
 * Marks a file as written by this machine, and shows any change of it. The key is random, kept beside what it seals and
 * bound to the machine id: a disk that is cloned into another machine brings files that this machine does not take.
 * It is no defence against who may read the key, as the agent's own user may.
 */
export interface Seal {
	/** Tells seals apart; no secret. */
	readonly id: string;
	/** For the bytes to be sealed. */
	start(): Hmac;
}

const keyBytes = 32;

/**
 * @param dir - where the key is, as `seal.key`
 * @param machineId - content of /etc/machine-id; '' where there is none
 * @throws system errors
 */
export async function openSeal(dir: string, machineId: string, fs: DurableFs): Promise<Seal> {
	const secret = await readOrMakeKey(`${dir}/seal.key`, fs);
	const key = createHmac('sha256', secret).update(`onramp seal\n${machineId}`).digest();
	return {
		id: createHmac('sha256', key).update('id').digest('hex').slice(0, 16),
		start: () => createHmac('sha256', key).update('content'),
	};
}

async function readOrMakeKey(path: string, fs: DurableFs): Promise<Buffer> {
	const known = await readFile(path).catch((error: unknown) => {
		if (systemCode(error) === 'ENOENT') return undefined;
		throw error;
	});
	// One of another length is damaged, and so is what it sealed.
	if (known?.length === keyBytes) return known;
	const made = randomBytes(keyBytes);
	await writeFileAtomic(path, made, 0o600, fs);
	return made;
}

/** Content of /etc/machine-id, or '' where there is none. */
export async function readMachineId(path = '/etc/machine-id'): Promise<string> {
	return readFile(path, 'latin1').then(
		text => text.trim(),
		() => '',
	);
}
