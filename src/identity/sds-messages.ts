import {FieldReader, FieldWriter, WireError} from '../proto/wire.ts';

/**
 * The few SDS messages, read and written by hand. Field numbers: envoy.service.discovery.v3.DiscoveryRequest and
 * DiscoveryResponse, envoy.extensions.transport_sockets.tls.v3.Secret and what it holds.
 */
export interface SecretUpdate {
	readonly versionInfo: string;
	readonly nonce: string;
	readonly secrets: readonly SecretResource[];
}

export interface SecretResource {
	readonly name: string;
	readonly certificate?: {readonly chainPem: string; readonly keyPem: string} | undefined;
	readonly trustedCaPem?: string | undefined;
}

export interface SecretRequest {
	readonly nodeId: string;
	readonly typeUrl: string;
	readonly names: readonly string[];
	readonly versionInfo?: string;
	readonly nonce?: string;
	/** Present in a refusal (NACK). */
	readonly error?: string | undefined;
}

/** google.rpc.Code INVALID_ARGUMENT. */
const invalidArgument = 3;

export function renderSecretRequest({nodeId, typeUrl, names, versionInfo, nonce, error}: SecretRequest): Buffer {
	const writer = new FieldWriter()
		.string(1, versionInfo ?? '')
		.message(2, node => node.string(1, nodeId))
		.strings(3, names)
		.string(4, typeUrl)
		.string(5, nonce ?? '');
	if (error !== undefined) writer.message(6, status => status.uint(1, invalidArgument).string(2, error));
	return writer.finish();
}

/** @throws WireError */
export function parseSecretUpdate(buffer: Buffer, typeUrl: string): SecretUpdate {
	let versionInfo = '';
	let nonce = '';
	const secrets: SecretResource[] = [];
	const reader = new FieldReader(buffer);
	while (reader.next()) {
		if (reader.number === 1) versionInfo = reader.string();
		else if (reader.number === 2) secrets.push(parseResource(reader.message(), typeUrl));
		else if (reader.number === 5) nonce = reader.string();
	}
	return {versionInfo, nonce, secrets};
}

/** An Any. */
function parseResource(reader: FieldReader, typeUrl: string): SecretResource {
	let type = '';
	let value: FieldReader | undefined;
	while (reader.next()) {
		if (reader.number === 1) type = reader.string();
		else if (reader.number === 2) value = reader.message();
	}
	if (type !== typeUrl) throw new WireError(`resource of type "${type}", expected "${typeUrl}"`);
	return value ? parseSecret(value) : {name: ''};
}

function parseSecret(reader: FieldReader): SecretResource {
	let name = '';
	let certificate: SecretResource['certificate'];
	let trustedCaPem: string | undefined;
	while (reader.next()) {
		if (reader.number === 1) name = reader.string();
		else if (reader.number === 2) certificate = parseTlsCertificate(reader.message());
		else if (reader.number === 4) trustedCaPem = parseTrustedCa(reader.message());
	}
	return {name, certificate, trustedCaPem};
}

function parseTlsCertificate(reader: FieldReader): {chainPem: string; keyPem: string} {
	let chainPem = '';
	let keyPem = '';
	while (reader.next()) {
		if (reader.number === 1) chainPem = parseDataSource(reader.message());
		else if (reader.number === 2) keyPem = parseDataSource(reader.message());
	}
	return {chainPem, keyPem};
}

function parseTrustedCa(reader: FieldReader): string {
	let text = '';
	while (reader.next()) {
		if (reader.number === 1) text = parseDataSource(reader.message());
	}
	return text;
}

/** `filename` (1) is left alone: a server must not choose which of our files are read. */
function parseDataSource(reader: FieldReader): string {
	let text = '';
	while (reader.next()) {
		if (reader.number === 1) throw new WireError('secret given as a file name, expected inline bytes');
		if (reader.number === 2 || reader.number === 3) text = reader.string();
	}
	return text;
}
