import {mkdir, writeFile} from 'node:fs/promises';
import {isIP} from 'node:net';
import {join} from 'node:path';
import {stringify} from 'yaml';
import type {WorkloadGroupSpec} from './registry.ts';

export interface BundleOptions {
	/** A VM joins by itself, with `istioctl … --autoregister`. On unless false. */
	readonly isAutoRegistered?: boolean;
	/** Address of the gateway to the control plane for `hosts`; '' makes an empty file. 127.0.0.1 unless given. */
	readonly ingressAddress?: string;
	/** `istioctl … --internalIP`: the VM's own address. */
	readonly internalAddress?: string;
	readonly isDnsCaptured?: boolean;
	readonly tokenLifetimeMs?: number;
	/** Host and port written as discoveryAddress; `istiod.istio-system.svc:PORT` unless given. */
	readonly discoveryAddress?: string;
	/** Further proxyMetadata of the mesh's ProxyConfig. */
	readonly proxyMetadata?: Readonly<Record<string, string>>;
}

export interface BundleDeps {
	readonly group: WorkloadGroupSpec;
	readonly clusterId: string;
	readonly trustDomain: string;
	readonly rootPem: string;
	readonly token: string;
	readonly discoveryAddress: string;
}

/** All files of a bundle get this mode from istioctl. */
const fileMode = 0o744;

/** The five files of `istioctl x workload entry configure`, by name; its bytes and its order of keys. */
export function renderBundle(deps: BundleDeps, options: BundleOptions = {}): Record<string, string> {
	const {group, rootPem, token, discoveryAddress} = deps;
	const metadata = renderProxyMetadata(deps, options);
	const defaultConfig = {
		discoveryAddress: options.discoveryAddress ?? discoveryAddress,
		proxyMetadata: metadata,
		...(group.probe ? {readinessProbe: group.probe} : {}),
	};
	const {ingressAddress = '127.0.0.1'} = options;
	return {
		'cluster.env': renderClusterEnv({...metadata, ...renderOverrides(group, options)}),
		'mesh.yaml': stringify(
			{defaultConfig: sorted(defaultConfig)},
			{lineWidth: 0, defaultStringType: 'PLAIN', singleQuote: null},
		),
		'root-cert.pem': rootPem,
		'istio-token': token,
		hosts: isIP(ingressAddress) ? `${ingressAddress} istiod.istio-system.svc\n` : '',
	};
}

export async function writeBundle(directory: string, files: Readonly<Record<string, string>>): Promise<void> {
	await mkdir(directory, {recursive: true});
	await Promise.all(
		Object.entries(files).map(([name, text]) => writeFile(join(directory, name), text, {mode: fileMode})),
	);
}

function renderProxyMetadata(
	{group, clusterId, trustDomain}: BundleDeps,
	options: BundleOptions,
): Record<string, string> {
	const {name, namespace, labels = {}, ports = {}, network = ''} = group;
	const service =
		labels['service.istio.io/canonical-name'] ?? labels['app.kubernetes.io/name'] ?? labels['app'] ?? name;
	const revision =
		labels['service.istio.io/canonical-revision'] ??
		labels['app.kubernetes.io/version'] ??
		labels['version'] ??
		'latest';
	const canonical = {'service.istio.io/canonical-name': service, 'service.istio.io/canonical-revision': revision};
	const podPorts = Object.entries(ports)
		.sort(([a], [b]) => (a < b ? -1 : 1))
		.map(([portName, containerPort]) => ({name: portName, containerPort, protocol: ''}));
	return sortedAsGoYaml({
		...options.proxyMetadata,
		CANONICAL_SERVICE: service,
		CANONICAL_REVISION: revision,
		POD_NAMESPACE: namespace,
		SERVICE_ACCOUNT: group.serviceAccount ?? '',
		TRUST_DOMAIN: trustDomain,
		ISTIO_META_CLUSTER_ID: clusterId,
		ISTIO_META_MESH_ID: '',
		ISTIO_META_NETWORK: network,
		...(podPorts.length > 0 ? {ISTIO_META_POD_PORTS: JSON.stringify(podPorts)} : {}),
		ISTIO_META_WORKLOAD_NAME: name,
		ISTIO_METAJSON_LABELS: JSON.stringify(sorted({...labels, ...canonical})),
		...(options.isDnsCaptured === false ? {} : {ISTIO_META_DNS_CAPTURE: 'true'}),
		...(options.isAutoRegistered === false ? {} : {ISTIO_META_AUTO_REGISTER_GROUP: name}),
	});
}

function renderOverrides(group: WorkloadGroupSpec, {internalAddress}: BundleOptions): Record<string, string> {
	const ports = Object.values(group.ports ?? {});
	return {
		ISTIO_INBOUND_PORTS: ports.length > 0 ? ports.join(',') : '*',
		ISTIO_NAMESPACE: group.namespace,
		ISTIO_SERVICE: `${group.name}.${group.namespace}`,
		ISTIO_SERVICE_CIDR: '*',
		ISTIO_LOCAL_EXCLUDE_PORTS: '22,15090,15021,15020',
		SERVICE_ACCOUNT: group.serviceAccount ?? '',
		...(internalAddress ? {ISTIO_SVC_IP: internalAddress} : {}),
	};
}

/** Sorted lines, every value in POSIX single quotes. */
function renderClusterEnv(values: Readonly<Record<string, string>>): string {
	const lines = Object.entries(values).map(([key, value]) => `${key}='${value.replaceAll("'", `'"'"'`)}'`);
	return `${lines.sort().join('\n')}\n`;
}

/** Go's YAML writer puts `_` before letters, where plain ASCII order has it after the capitals. */
function sortedAsGoYaml(record: Readonly<Record<string, string>>): Record<string, string> {
	const keyOf = (name: string) => name.replaceAll('_', ' ');
	return Object.fromEntries(Object.entries(record).sort(([a], [b]) => (keyOf(a) < keyOf(b) ? -1 : 1)));
}

function sorted<T>(record: Readonly<Record<string, T>>): Record<string, T> {
	return Object.fromEntries(Object.entries(record).sort(([a], [b]) => (a < b ? -1 : 1)));
}
