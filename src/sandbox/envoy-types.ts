import {existsSync, readdirSync} from 'node:fs';
import {createRequire} from 'node:module';
import {dirname, join} from 'node:path';
import protobuf from 'protobufjs';

/** A message as plain data: field names as in the .proto files; `@type` in an Any names what is inside. */
export type Message = {readonly [field: string]: unknown};

/** Encodes and decodes Envoy's resources by the .proto files that come with `@grpc/grpc-js-xds`. */
export interface EnvoyTypes {
	/** @throws TypeError for a field or type that does not exist, so that a misspelt field never vanishes silently */
	encode(type: string, message: Message): Buffer;
	/** Anys are opened as far as their types are known. */
	decode(type: string, bytes: Uint8Array): Message;
}

const google = 'type.googleapis.com/';

/** What Envoy's own API does not define; names and numbers as stock-Envoy NACKs and Istio's API give them. */
const istioTypes = `
syntax = "proto3";
package io.istio.http.peer_metadata;
message Config {}
`;
const istioAlpn = `
syntax = "proto3";
package istio.envoy.config.filter.http.alpn.v2alpha1;
message FilterConfig {
  enum Protocol { HTTP10 = 0; HTTP11 = 1; HTTP2 = 2; }
  message AlpnOverride { Protocol upstream_protocol = 1; repeated string alpn_override = 2; }
  repeated AlpnOverride alpn_override = 1;
}
`;
const istioStats = `
syntax = "proto3";
package stats;
import "google/protobuf/duration.proto";
import "google/protobuf/wrappers.proto";
message PluginConfig {
  reserved 1;
  bool disable_host_header_fallback = 5;
  google.protobuf.Duration tcp_reporting_duration = 6;
  enum Reporter { UNSPECIFIED = 0; SERVER_GATEWAY = 1; }
  Reporter reporter = 9;
}
`;

/** Entry points; everything else comes in by import. */
const rootFiles = [
	'envoy/config/cluster/v3/cluster.proto',
	'envoy/config/endpoint/v3/endpoint.proto',
	'envoy/config/listener/v3/listener.proto',
	'envoy/config/route/v3/route.proto',
	'envoy/config/bootstrap/v3/bootstrap.proto',
	'envoy/extensions/access_loggers/file/v3/file.proto',
	'envoy/extensions/filters/http/cors/v3/cors.proto',
	'envoy/extensions/filters/http/fault/v3/fault.proto',
	'envoy/extensions/filters/http/grpc_stats/v3/config.proto',
	'envoy/extensions/filters/http/router/v3/router.proto',
	'envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto',
	'envoy/extensions/filters/listener/original_dst/v3/original_dst.proto',
	'envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto',
	'envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto',
	'envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto',
	'envoy/extensions/request_id/uuid/v3/uuid.proto',
	'envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto',
	'envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto',
	'envoy/extensions/transport_sockets/tls/v3/tls.proto',
	'envoy/extensions/upstreams/http/v3/http_protocol_options.proto',
	'envoy/service/discovery/v3/discovery.proto',
	'udpa/type/v1/typed_struct.proto',
	'google/rpc/status.proto',
];

let loaded: EnvoyTypes | undefined;

/** Parses the .proto files on first use (a few hundred milliseconds) and keeps the result. */
export function loadEnvoyTypes(): EnvoyTypes {
	loaded ??= parseTypes();
	return loaded;
}

function parseTypes(): EnvoyTypes {
	const folder = join(packageFolder('@grpc/grpc-js-xds'), 'deps');
	const roots = [...readdirSync(folder).map(name => join(folder, name)), packageFolder('protobufjs')];
	const root = new protobuf.Root();
	root.resolvePath = (_origin, target) => {
		if (existsSync(target)) return target;
		return roots.map(path => join(path, target)).find(path => existsSync(path)) ?? null;
	};
	root.loadSync(rootFiles, {keepCase: true});
	for (const text of [istioTypes, istioAlpn, istioStats]) protobuf.parse(text, root, {keepCase: true});
	root.resolveAll();
	const find = (type: string) => root.lookupType(type.startsWith(google) ? type.slice(google.length) : type);
	return {
		encode(type, message) {
			const found = find(type);
			checkFields(root, found, message, type);
			return Buffer.from(found.encode(found.fromObject(message)).finish());
		},
		decode: (type, bytes) => {
			const found = find(type);
			return found.toObject(found.decode(bytes), {json: true, longs: String, enums: String, bytes: String}) as Message;
		},
	};
}

/** `fromObject` ignores what it does not know; a sandbox that forgets half a listener would prove nothing. */
function checkFields(root: protobuf.Root, type: protobuf.Type, message: unknown, path: string): void {
	if (typeof message !== 'object' || message === null || Buffer.isBuffer(message)) return;
	let inner = type;
	for (const [name, value] of Object.entries(message)) {
		if (name === '@type') {
			inner = root.lookupType(String(value).slice(google.length));
			continue;
		}
		const field = inner.fields[name];
		if (!field) throw new TypeError(`${path}: no field "${name}" in ${inner.fullName}`);
		field.resolve();
		if (!(field.resolvedType instanceof protobuf.Type)) continue;
		const items = field.repeated ? (value as unknown[]) : field.map ? Object.values(value as object) : [value];
		for (const item of items) checkFields(root, field.resolvedType, item, `${path}.${name}`);
	}
}

function packageFolder(name: string): string {
	const require = createRequire(import.meta.url);
	for (const path of require.resolve.paths(name) ?? []) {
		if (existsSync(join(path, name, 'package.json'))) return join(path, name);
	}
	return dirname(require.resolve(name));
}
