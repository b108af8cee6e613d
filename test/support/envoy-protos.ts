import {existsSync} from 'node:fs';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import protobuf from 'protobufjs';

/**
 * Envoy's message types, from the proto files that come with @grpc/grpc-js-xds, for building real resources in
 * tests. Imports are looked up in its four roots, then in protobufjs' own copies of google/protobuf.
 */
const deps = fileURLToPath(new URL('../../node_modules/@grpc/grpc-js-xds/deps/', import.meta.url));
const roots = ['envoy-api', 'xds', 'googleapis', 'protoc-gen-validate'].map(name => join(deps, name));
const own = fileURLToPath(new URL('../../node_modules/protobufjs/', import.meta.url));

/** @param files - as in an `import` line, `envoy/config/cluster/v3/cluster.proto` */
export function loadEnvoyProtos(files: readonly string[]): protobuf.Root {
	const root = new protobuf.Root();
	root.resolvePath = (_origin, target) =>
		[...roots, own].map(base => join(base, target)).find(path => existsSync(path)) ?? null;
	return root.loadSync([...files], {keepCase: true});
}

/** A JSON-like object → the encoded message. Throws for fields the message does not have. */
export function encodeMessage(root: protobuf.Root, type: string, value: Record<string, unknown>): Buffer {
	const message = root.lookupType(type);
	return Buffer.from(message.encode(message.fromObject(value)).finish());
}

/** `{type_url, value}` with the message inside, as a field of an Any type wants it. */
export function anyOf(
	root: protobuf.Root,
	type: string,
	value: Record<string, unknown>,
): {type_url: string; value: Buffer} {
	return {type_url: `type.googleapis.com/${type}`, value: encodeMessage(root, type, value)};
}

/** Decoded to plain objects: enums as names, bytes as Buffers, nothing for absent fields. */
export function decodeMessage(root: protobuf.Root, type: string, encoded: Uint8Array): Record<string, unknown> {
	const message = root.lookupType(type);
	return message.toObject(message.decode(encoded), {enums: String, longs: Number, bytes: Buffer});
}
