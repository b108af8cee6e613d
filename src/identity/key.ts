import {createPrivateKey, generateKeyPair, type KeyObject} from 'node:crypto';
import {promisify} from 'node:util';
import type {KeyType} from '../config/types.ts';
import {AgentError} from '../errors.ts';
import {Secret} from '../log.ts';

export interface WorkloadKey {
	readonly privateKey: KeyObject;
	readonly publicKey: KeyObject;
	/** PKCS#8. Envoy, Go, OpenSSL and Java all read it; the older SEC1 and PKCS#1 forms are not read by all. */
	readonly pem: Secret;
}

const generate = promisify(generateKeyPair);

/**
 * Makes a new private key. Runs on libuv's thread pool: an RSA key of 4096 bits takes seconds.
 * @throws AgentError identity.key_unsupported
 */
export async function generateKey(type: KeyType): Promise<WorkloadKey> {
	const {privateKey, publicKey} = await generatePair(type);
	return {privateKey, publicKey, pem: new Secret(privateKey.export({type: 'pkcs8', format: 'pem'}).toString())};
}

/** @throws AgentError identity.key_unsupported for what {@link generateKey} cannot make */
export function assertKeyType(type: string): asserts type is KeyType {
	if (type in modulusBits || type in curves) return;
	throw new AgentError('identity.key_unsupported', `key type "${type}" is not supported`, {
		hint: `use one of ${[...Object.keys(curves), ...Object.keys(modulusBits)].join(', ')}`,
	});
}

/** @throws if the text is not an unencrypted private key; the message never quotes it */
export function parseKey(pem: Secret): KeyObject {
	try {
		return createPrivateKey(pem.reveal());
	} catch (cause) {
		throw new AgentError('identity.source_unusable', 'parse private key: not an unencrypted private key in PEM', {
			cause,
		});
	}
}

const curves: Record<string, string> = {'ecdsa-p256': 'P-256', 'ecdsa-p384': 'P-384'};
const modulusBits: Record<string, number> = {'rsa-2048': 2048, 'rsa-3072': 3072, 'rsa-4096': 4096};

function generatePair(type: KeyType): Promise<{privateKey: KeyObject; publicKey: KeyObject}> {
	assertKeyType(type);
	const namedCurve = curves[type];
	if (namedCurve !== undefined) return generate('ec', {namedCurve});
	return generate('rsa', {modulusLength: modulusBits[type]!});
}
