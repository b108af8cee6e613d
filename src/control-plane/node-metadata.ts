import type {WorkloadConfig} from '../config/types.ts';
import {FieldWriter} from '../proto/wire.ts';

/** Envoy's core.v3.Node, in the JSON form its bootstrap takes. */
export interface Node {
	readonly id: string;
	readonly cluster: string;
	readonly locality: {readonly region?: string; readonly zone?: string; readonly sub_zone?: string};
	readonly metadata: Readonly<Record<string, unknown>>;
}

export interface NodeSettings {
	readonly readinessPort: number;
	readonly metricsPort: number;
	readonly dnsAddress?: string;
	/** What the cloud says of the machine, by the names of Istio's own agent (pkg/bootstrap/platform). */
	readonly platform?: Readonly<Record<string, string>>;
}

/**
 * The node as istiod parses it. Its JSON typing is strict, and one wrong type refuses the whole stream: flags are the
 * strings "true" and "false", lists are joined by commas, the two ports are numbers, PROXY_CONFIG is an object
 * (Istio pkg/model/proxy.go).
 */
export function buildNode(workload: WorkloadConfig, settings: NodeSettings): Node {
	const [address = '127.0.0.1'] = workload.addresses;
	const metadata: Record<string, unknown> = {
		// Free keys first: a typed key below must win over one of the same name.
		...workload.metadata,
		NAME: workload.name,
		NAMESPACE: workload.namespace,
		SERVICE_ACCOUNT: workload.serviceAccount,
		// The first address names the WorkloadEntry.
		INSTANCE_IPS: workload.addresses.join(','),
		CLUSTER_ID: workload.clusterId,
		ISTIO_VERSION: workload.istioVersion,
		LABELS: workload.labels,
		STATIC_LABELS: workload.labels,
		ENVOY_STATUS_PORT: settings.readinessPort,
		ENVOY_PROMETHEUS_PORT: settings.metricsPort,
		PROXY_CONFIG: workload.proxyConfig,
	};
	if (workload.group !== undefined) metadata['AUTO_REGISTER_GROUP'] = workload.group;
	if (workload.isDnsCaptured) metadata['DNS_CAPTURE'] = 'true';
	if (settings.platform) metadata['PLATFORM_METADATA'] = settings.platform;
	if (settings.dnsAddress !== undefined) metadata['DNS_PROXY_ADDR'] = settings.dnsAddress;
	const [region, zone, subZone] = workload.locality.split('/');
	return {
		id: `sidecar~${address}~${workload.name}.${workload.namespace}~${workload.domain}`,
		cluster: workload.serviceCluster,
		locality: {
			...(region ? {region} : {}),
			...(zone ? {zone} : {}),
			...(subZone ? {sub_zone: subZone} : {}),
		},
		metadata,
	};
}

/** core.v3.Node on the wire: id 1, cluster 2, metadata 3, locality 4, user_agent_name 6, user_agent_version 7. */
export function encodeNode(node: Node, userAgentVersion: string): Buffer {
	return new FieldWriter()
		.string(1, node.id)
		.string(2, node.cluster)
		.message(3, struct => writeStruct(struct, node.metadata))
		.message(4, locality =>
			locality
				.string(1, node.locality.region ?? '')
				.string(2, node.locality.zone ?? '')
				.string(3, node.locality.sub_zone ?? ''),
		)
		.string(6, 'onramp')
		.string(7, userAgentVersion)
		.finish();
}

/** google.protobuf.Struct: fields 1 = map entry {key 1, value 2}. */
function writeStruct(writer: FieldWriter, object: Readonly<Record<string, unknown>>): void {
	for (const [key, value] of Object.entries(object)) {
		if (value === undefined) continue;
		writer.message(1, entry => entry.string(1, key).message(2, inner => writeValue(inner, value)));
	}
}

/** google.protobuf.Value: null 1, number 2 (double), string 3, bool 4, struct 5, list 6. Zero values are written: the oneof needs them. */
function writeValue(writer: FieldWriter, value: unknown): void {
	if (value === null) writer.raw(Buffer.from([1 * 8, 0]));
	else if (typeof value === 'number') writer.raw(doubleField(2, value));
	else if (typeof value === 'string') writer.bytes(3, Buffer.from(value, 'utf8'));
	else if (typeof value === 'boolean') writer.raw(Buffer.from([4 * 8, value ? 1 : 0]));
	else if (Array.isArray(value)) {
		writer.message(6, list => {
			for (const item of value) list.message(1, inner => writeValue(inner, item));
		});
	} else writer.message(5, struct => writeStruct(struct, value as Record<string, unknown>));
}

function doubleField(number: number, value: number): Buffer {
	const out = Buffer.alloc(9);
	out[0] = number * 8 + 1;
	out.writeDoubleLE(value, 1);
	return out;
}
