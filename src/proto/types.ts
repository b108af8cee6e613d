/** Type URLs of what passes through the agent. Sources: Envoy's v3 API; Istio's xDS model. */
const google = 'type.googleapis.com/';

export const typeUrl = {
	cluster: `${google}envoy.config.cluster.v3.Cluster`,
	endpoint: `${google}envoy.config.endpoint.v3.ClusterLoadAssignment`,
	listener: `${google}envoy.config.listener.v3.Listener`,
	route: `${google}envoy.config.route.v3.RouteConfiguration`,
	secret: `${google}envoy.extensions.transport_sockets.tls.v3.Secret`,
	extensionConfig: `${google}envoy.config.core.v3.TypedExtensionConfig`,
	nameTable: `${google}istio.networking.nds.v1.NameTable`,
	proxyConfig: `${google}istio.mesh.v1alpha1.ProxyConfig`,
	health: `${google}istio.v1.HealthInformation`,
} as const;

export type TypeUrl = string;

/** `CDS`, `LDS`, … for logs and metrics; the last part of the type for others. */
export function shortType(url: TypeUrl): string {
	return shortNames.get(url) ?? url.slice(url.lastIndexOf('.') + 1);
}

const shortNames = new Map<string, string>([
	[typeUrl.cluster, 'CDS'],
	[typeUrl.endpoint, 'EDS'],
	[typeUrl.listener, 'LDS'],
	[typeUrl.route, 'RDS'],
	[typeUrl.secret, 'SDS'],
	[typeUrl.extensionConfig, 'ECDS'],
	[typeUrl.nameTable, 'NDS'],
	[typeUrl.proxyConfig, 'PCDS'],
]);

/** Types a client may subscribe to without naming resources. */
export function isWildcardType(url: TypeUrl): boolean {
	return url === typeUrl.cluster || url === typeUrl.listener;
}
