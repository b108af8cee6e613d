import {rankAddresses, selectAddresses} from './addresses.ts';
import {ipFamily} from './ip.ts';
import {isRecord, readLabels, readMetadata} from './metadata.ts';
import {byDefault, type Resolver} from './resolver.ts';
import {table} from './settings.ts';
import type {HostFacts} from './sources.ts';
import type {AddressConfig, Config, ControlPlaneConfig, Origin, WorkloadConfig} from './types.ts';
import {nodeName, renderDuration, ValueError} from './values.ts';

const host: Origin = {kind: 'host', place: 'host'};

/** All of WorkloadConfig but what is made of the other sections. */
export function readWorkload(resolver: Resolver, facts: HostFacts): Omit<WorkloadConfig, 'proxyConfig' | 'addresses'> {
	const namespace = readNamespace(resolver);
	const group = resolver.orElse(table.group, undefined, byDefault).value;
	const labels = readLabels(resolver);
	const metadata = readMetadata(resolver);
	return {
		trustDomain: resolver.take(table.trustDomain),
		namespace,
		serviceAccount: resolver.take(table.serviceAccount),
		name: readName(resolver, facts.hostname),
		clusterId: resolver.take(table.clusterId),
		group,
		domain: readDomain(resolver, namespace),
		serviceCluster: readServiceCluster(resolver, {namespace, group, labels, metadata}),
		labels,
		locality: readLocality(resolver, labels),
		metadata,
		istioVersion: resolver.take(table.istioVersion),
		isDnsCaptured: resolver.take(table.dnsCapture),
	};
}

function readNamespace(resolver: Resolver): string {
	const found = resolver.optional(table.namespace);
	if (!found && !resolver.find(table.namespace))
		resolver.findings.problem('workload.namespace', 'is not set, and no bundle has it', 'give --bundle or --namespace');
	return found?.value ?? '';
}

function readName(resolver: Resolver, hostname: string): string {
	const found = resolver.optional(table.name);
	if (found) return found.value;
	const short = hostname.split('.')[0]!;
	resolver.note(table.name.leaf, host);
	try {
		return nodeName.parse(short, '/');
	} catch (error) {
		if (!(error instanceof ValueError)) throw error;
		if (!resolver.find(table.name))
			resolver.findings.problem('host name', `"${short}" ${error.message}`, 'give --name');
		return '';
	}
}

/** @param controlPlane - the way to it shows the address by which others may reach us */
export function readAddresses(
	resolver: Resolver,
	facts: HostFacts,
	{endpoints, hosts}: Pick<ControlPlaneConfig, 'endpoints' | 'hosts'>,
): {addresses: readonly string[]; config: AddressConfig} {
	const explicit = resolver.optional(table.address);
	const rules = resolver.take(table.addressFrom);
	const towards = endpoints.flatMap(({host: name}) => (ipFamily(name) === 0 ? (hosts[name] ?? []) : [name]));
	resolver.note('address.isFixed', explicit?.origin ?? byDefault);
	resolver.note('address.towards', resolver.origins.get(table.endpoints.leaf) ?? byDefault);
	const config = {isFixed: explicit !== undefined, rules, towards};
	const ranked = rankAddresses(facts, config);
	const addresses = selectAddresses(ranked, explicit?.value);
	if (explicit) return {addresses, config};
	const [first] = addresses;
	resolver.note(table.address.leaf, host);
	const [best] = ranked;
	if (best && !best.isUsable)
		resolver.findings.warn(
			'host',
			`has no address that is good for others; ${first} of ${best.interface} is used, ${best.why} (set workload.address)`,
		);
	if (first === '127.0.0.1')
		resolver.findings.warn('host', 'has no address that others can reach; 127.0.0.1 is used (set workload.address)');
	return {addresses, config};
}

function readDomain(resolver: Resolver, namespace: string): string {
	// Literally cluster.local, whatever the trust domain: it is what istiod compares with.
	return resolver.orElse(table.domain, `${namespace}.svc.cluster.local`, byDefault).value;
}

type Named = Pick<WorkloadConfig, 'namespace' | 'group' | 'labels' | 'metadata'>;

/** As pilot-agent makes it up, with the group, which its start script would have put there, before the rest. */
function readServiceCluster(resolver: Resolver, {namespace, group, labels, metadata}: Named): string {
	const owner = group ?? labels['app'] ?? (metadata['WORKLOAD_NAME'] || 'istio-proxy');
	return resolver.orElse(table.serviceCluster, `${owner}.${namespace}`, byDefault).value;
}

const localityLabels = ['topology.istio.io/locality', 'istio-locality'] as const;

function readLocality(resolver: Resolver, labels: Readonly<Record<string, string>>): string {
	const label = localityLabels.find(name => labels[name]);
	const origin = (label && resolver.origins.get(`workload.labels.${label}`)) || byDefault;
	const {value} = resolver.orElse(table.locality, label ? labels[label]! : '', origin);
	// Labels cannot hold a slash, so the older one is written with dots.
	return value.includes('/') ? value : value.replaceAll('.', '/');
}

/** Istio's defaults that a control plane may look at (DefaultProxyConfig in mesh.go). */
const istioDefaults = {
	configPath: './etc/istio/proxy',
	proxyAdminPort: 15_000,
	controlPlaneAuthPolicy: 'MUTUAL_TLS',
	statNameLength: 189,
};

/**
 * The ProxyConfig that applies, as proto-JSON: Istio's defaults, mesh.yaml and PROXY_CONFIG, with what the agent
 * really does written over them.
 * @param fields - of mesh.yaml and PROXY_CONFIG, the latter first
 */
export function effectiveProxyConfig(
	fields: readonly Readonly<Record<string, unknown>>[],
	config: {
		readonly proxy: Config['proxy'];
		readonly status: Config['status'];
		readonly health: Config['health'];
		readonly serviceCluster: string;
		readonly discoveryAddress: string;
	},
): Readonly<Record<string, unknown>> {
	const {proxy, status, health, serviceCluster, discoveryAddress} = config;
	const {readinessProbe, ...merged} = Object.assign({}, istioDefaults, ...fields.toReversed());
	for (const name of ['proxyMetadata', 'proxyHeaders']) {
		const maps = fields.map(each => each[name]).filter(isRecord);
		if (maps.length > 0) merged[name] = Object.assign({}, ...maps.toReversed());
	}
	return {
		...merged,
		// That there is one is all istiod looks at: it gives the WorkloadEntry a health, bad until it is told otherwise.
		...(health.isReported && {readinessProbe: readinessProbe ?? {}}),
		binaryPath: proxy.binaryPath,
		serviceCluster,
		discoveryAddress,
		drainDuration: renderDuration(proxy.drainMs),
		terminationDrainDuration: renderDuration(proxy.terminationDrainMs),
		concurrency: proxy.concurrency,
		...(status.port > 0 && {statusPort: status.port}),
	};
}
