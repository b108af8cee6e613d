import {isIP} from 'node:net';
import type {Message} from './envoy-types.ts';

/** What istiod makes of an Envoy node. */
export interface ProxyNode {
	/** Third part of the node id, `vm1.bar`; names the connection. */
	readonly id: string;
	/** `vm1`: the id without its namespace. */
	readonly name: string;
	readonly namespace: string;
	readonly serviceAccount: string;
	/** Never empty; the first is the address of the WorkloadEntry. */
	readonly addresses: readonly string[];
	readonly clusterId: string;
	readonly network: string;
	readonly labels: Readonly<Record<string, string>>;
	readonly group: string;
	readonly workloadEntry: string;
	readonly interception: 'REDIRECT' | 'TPROXY' | 'NONE';
	readonly hasReadinessProbe: boolean;
	readonly locality: string;
	/** The whole metadata as JSON, for looking at. */
	readonly metadata: Readonly<Record<string, unknown>>;
}

/** istiod answers a node it cannot read with InvalidArgument and this text. */
export class NodeError extends Error {}

type Kind = 'string' | 'list' | 'bool' | 'int' | 'labels' | 'ports' | 'object';

/** Typed keys of Istio's NodeMetadata; every other key may hold anything. */
const kinds: Readonly<Record<string, Kind>> = {
	...Object.fromEntries(
		(
			'ISTIO_VERSION ISTIO_REVISION NAMESPACE NODE_NAME WORKLOAD_NAME INTERCEPTION_MODE SERVICE_ACCOUNT HTTP_PROXY_PORT ' +
			'MESH_ID CLUSTER_ID NETWORK TLS_SERVER_CERT_CHAIN TLS_SERVER_KEY TLS_SERVER_ROOT_CERT TLS_CLIENT_CERT_CHAIN ' +
			'TLS_CLIENT_KEY TLS_CLIENT_ROOT_CERT BASE IDLE_TIMEOUT HTTP10 GENERATOR DNS_PROXY_ADDR AUTO_REGISTER_GROUP ' +
			'WORKLOAD_ENTRY UNPRIVILEGED_POD STS_PORT CLOUDRUN_ADDR WORKLOAD_IDENTITY_SOCKET_FILE'
		)
			.split(' ')
			.map(key => [key, 'string'] as const),
	),
	INSTANCE_IPS: 'list',
	REQUESTED_NETWORK_VIEW: 'list',
	POD_PORTS: 'ports',
	LABELS: 'labels',
	STATIC_LABELS: 'labels',
	ANNOTATIONS: 'labels',
	PLATFORM_METADATA: 'labels',
	PROXY_CONFIG: 'object',
	...Object.fromEntries(
		(
			'ENABLE_SELF_DISCOVERY DNS_CAPTURE DNS_AUTO_ALLOCATE ENABLE_HBONE DISABLE_HBONE_SEND EXIT_ON_ZERO_ACTIVE_CONNECTIONS ' +
			'INBOUND_LISTENER_EXACT_BALANCE OUTBOUND_LISTENER_EXACT_BALANCE METADATA_DISCOVERY ENVOY_SKIP_DEPRECATED_LOGS'
		)
			.split(' ')
			.map(key => [key, 'bool'] as const),
	),
	...Object.fromEntries(
		'ENVOY_STATUS_PORT ENVOY_PROMETHEUS_PORT ENVOY_SECURE_METRICS_PORT ENVOY_SECURE_MERGED_METRICS_PORT'
			.split(' ')
			.map(key => [key, 'int'] as const),
	),
};

/** What Go's strconv.ParseBool takes. */
const booleans = new Set(['1', 't', 'T', 'TRUE', 'true', 'True', '0', 'f', 'F', 'FALSE', 'false', 'False']);

/**
 * Reads a node as strictly as istiod does.
 * @throws NodeError with istiod's text
 */
export function parseNode(node: Message | undefined): ProxyNode {
	const id = typeof node?.['id'] === 'string' ? node['id'] : '';
	if (id === '') throw new NodeError('missing node information');
	const metadata = readStruct(node!['metadata'] as Message | undefined);
	const problem = findProblem(metadata);
	if (problem) throw new NodeError(`failed to unmarshal node metadata (${renderSorted(metadata)}): ${problem}`);
	const parts = id.split('~');
	if (parts.length !== 4) throw new NodeError(`missing parts in the service node "${id}"`);
	if (!['sidecar', 'router', 'waypoint', 'ztunnel'].includes(parts[0]!)) {
		const valid = '(valid types: [sidecar router waypoint ztunnel])';
		throw new NodeError(`invalid node type ${valid} in the service node "${id}"`);
	}
	const text = (key: string): string => (metadata[key] as string | undefined) ?? '';
	const listed = text('INSTANCE_IPS') === '' ? [] : text('INSTANCE_IPS').split(',');
	const addresses = listed.length > 0 && listed.every(address => isIP(address)) ? listed : [parts[1]!].filter(isIP);
	if (addresses.length === 0) throw new NodeError('no valid IP address in the service node id or metadata');
	const namespace = text('NAMESPACE') || (parts[3]!.split('.').length > 1 ? parts[3]!.split('.')[0]! : '');
	const config = (metadata['PROXY_CONFIG'] ?? {}) as Record<string, unknown>;
	const {region = '', zone = '', sub_zone: subZone = ''} = (node!['locality'] ?? {}) as Record<string, string>;
	const interception = text('INTERCEPTION_MODE');
	return {
		id: parts[2]!,
		name: parts[2]!.endsWith(`.${namespace}`) ? parts[2]!.slice(0, -namespace.length - 1) : parts[2]!,
		namespace,
		serviceAccount: text('SERVICE_ACCOUNT'),
		addresses,
		clusterId: text('CLUSTER_ID'),
		network: text('NETWORK'),
		labels: (metadata['LABELS'] ?? {}) as Record<string, string>,
		group: text('AUTO_REGISTER_GROUP'),
		workloadEntry: text('WORKLOAD_ENTRY'),
		interception: interception === 'NONE' || interception === 'TPROXY' ? interception : 'REDIRECT',
		hasReadinessProbe: config['readinessProbe'] !== undefined && config['readinessProbe'] !== null,
		locality: [region, zone, subZone].join('/').replace(/\/+$/, ''),
		metadata,
	};
}

/** @returns Go's complaint about the first key, in sorted order, whose value has the wrong type */
function findProblem(metadata: Readonly<Record<string, unknown>>): string | undefined {
	for (const key of Object.keys(metadata).sort()) {
		const kind = kinds[key];
		const problem = kind && findValueProblem(key, kind, metadata[key]);
		if (problem) return problem;
	}
	return undefined;
}

function findValueProblem(key: string, kind: Kind, value: unknown): string | undefined {
	if (value === null) return undefined; // Go leaves the field alone
	const wrong = (got: string, want: string) =>
		`json: cannot unmarshal ${got} into Go struct field BootstrapNodeMetadata2.NodeMetadata.${key} of type ${want}`;
	switch (kind) {
		case 'string':
		case 'list':
			return typeof value === 'string' ? undefined : wrong(typeName(value), 'string');
		case 'bool':
			if (typeof value !== 'string') return 'invalid syntax';
			return booleans.has(value) ? undefined : `strconv.ParseBool: parsing "${value}": invalid syntax`;
		case 'int':
			if (typeof value !== 'number') return wrong(typeName(value), 'int');
			return Number.isInteger(value) ? undefined : wrong(`number ${value}`, 'int');
		case 'labels': {
			if (!isObject(value)) return wrong(typeName(value), 'map[string]string');
			const odd = Object.values(value).find(item => typeof item !== 'string' && item !== null);
			return odd === undefined ? undefined : wrong(typeName(odd), 'string');
		}
		case 'ports':
			return typeof value === 'string' ? findPortsProblem(value) : 'invalid syntax';
		case 'object':
			return isObject(value) ? undefined : wrong(typeName(value), 'map[string]json.RawMessage');
	}
}

function findPortsProblem(text: string): string | undefined {
	try {
		return Array.isArray(JSON.parse(text))
			? undefined
			: 'json: cannot unmarshal object into Go value of type []model.PodPort';
	} catch {
		return text === ''
			? 'unexpected end of JSON input'
			: `invalid character '${text[0]}' looking for beginning of value`;
	}
}

function isObject(value: unknown): value is Record<string, unknown> {
	return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function typeName(value: unknown): string {
	if (Array.isArray(value)) return 'array';
	return typeof value === 'boolean' ? 'bool' : typeof value;
}

function renderSorted(value: Readonly<Record<string, unknown>>): string {
	return JSON.stringify(Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))));
}

/** `google.protobuf.Struct`, as decoded, to plain JSON. */
export function readStruct(struct: Message | undefined): Record<string, unknown> {
	const fields = (struct?.['fields'] ?? {}) as Record<string, Message>;
	return Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, readValue(value)]));
}

function readValue(value: Message): unknown {
	if ('stringValue' in value) return value['stringValue'];
	if ('numberValue' in value) return value['numberValue'];
	if ('boolValue' in value) return value['boolValue'];
	if ('structValue' in value) return readStruct(value['structValue'] as Message);
	if ('listValue' in value) return (((value['listValue'] as Message)['values'] ?? []) as Message[]).map(readValue);
	return null;
}
