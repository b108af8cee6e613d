/** Discovery envelopes, as far as SDS needs them. Field numbers: envoy/service/discovery/v3/discovery.proto. */
import {createHash} from 'node:crypto';
import {typeUrl} from '../proto/types.ts';
import {FieldReader, FieldWriter} from '../proto/wire.ts';
import type {EncodedSecret} from './secrets.ts';

export interface SentSecret extends EncodedSecret {
	readonly name: string;
}

export interface SotwRequest {
	readonly names: readonly string[];
	readonly nonce: string;
	/** Set when Envoy rejected the response with this nonce. */
	readonly error: string | undefined;
}

export interface DeltaRequest {
	readonly subscribe: readonly string[];
	readonly unsubscribe: readonly string[];
	/** What Envoy holds from an earlier stream: name → version. */
	readonly versions: ReadonlyMap<string, string>;
	readonly nonce: string;
	readonly error: string | undefined;
}

/** @throws WireError */
export function parseSotwRequest(message: Buffer): SotwRequest {
	const names: string[] = [];
	let nonce = '';
	let error: string | undefined;
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number === 3) names.push(field.string());
		else if (field.number === 5) nonce = field.string();
		else if (field.number === 6) error = parseStatus(field.message());
	}
	return {names, nonce, error};
}

/** @throws WireError */
export function parseDeltaRequest(message: Buffer): DeltaRequest {
	const subscribe: string[] = [];
	const unsubscribe: string[] = [];
	const versions = new Map<string, string>();
	let nonce = '';
	let error: string | undefined;
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number === 3) subscribe.push(field.string());
		else if (field.number === 4) unsubscribe.push(field.string());
		else if (field.number === 5) versions.set(...parseMapEntry(field.message()));
		else if (field.number === 6) nonce = field.string();
		else if (field.number === 7) error = parseStatus(field.message());
	}
	return {subscribe, unsubscribe, versions, nonce, error};
}

/** The version covers what is in this response; Envoy only hands it back. */
export function renderSotwResponse(secrets: readonly SentSecret[], nonce: string): Buffer {
	const writer = new FieldWriter().string(1, versionOf(secrets));
	for (const {bytes} of secrets) writer.message(2, any => writeAny(any, bytes));
	return writer.string(4, typeUrl.secret).string(5, nonce).finish();
}

export function renderDeltaResponse(secrets: readonly SentSecret[], nonce: string): Buffer {
	const writer = new FieldWriter().string(1, versionOf(secrets));
	for (const {name, version, bytes} of secrets) {
		writer.message(2, resource =>
			resource
				.string(1, version)
				.message(2, any => writeAny(any, bytes))
				.string(3, name),
		);
	}
	return writer.string(4, typeUrl.secret).string(5, nonce).finish();
}

function versionOf(secrets: readonly SentSecret[]): string {
	if (secrets.length <= 1) return secrets[0]?.version ?? '';
	const hash = createHash('sha256');
	for (const {name, version} of secrets) hash.update(`${name}\0${version}\0`);
	return hash.digest('hex').slice(0, 32);
}

function writeAny(any: FieldWriter, bytes: Buffer): void {
	any.string(1, typeUrl.secret).bytes(2, bytes);
}

function parseStatus(status: FieldReader): string {
	let message = 'no reason given';
	while (status.next()) if (status.number === 2) message = status.string();
	return message;
}

function parseMapEntry(entry: FieldReader): [string, string] {
	let key = '';
	let value = '';
	while (entry.next()) {
		if (entry.number === 1) key = entry.string();
		else if (entry.number === 2) value = entry.string();
	}
	return [key, value];
}
