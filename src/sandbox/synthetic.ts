import type {Registry} from './registry.ts';

const namespace = 'synthetic';
const hostOf = (index: number): string => `svc-${String(index).padStart(5, '0')}.${namespace}.svc.cluster.local`;

/**
 * Fills the mesh with `count` HTTP services on port 80 with two endpoints each: a cluster, an assignment and a virtual
 * host apiece, and one listener for them all. Those beyond the count go.
 * @returns the hosts that have changed
 */
export function addSyntheticServices(registry: Registry, count: number, trustDomain: string): Set<string> {
	const changed = new Set<string>();
	const known = new Set(
		registry
			.services()
			.filter(service => service.namespace === namespace)
			.map(({host}) => host),
	);
	const spiffeId = `spiffe://${trustDomain}/ns/${namespace}/sa/default`;
	for (let index = 0; index < count; index++) {
		const host = hostOf(index);
		if (known.delete(host)) continue;
		changed.add(host);
		const net = `10.${128 + (index >> 14)}.${(index >> 6) & 0xff}`;
		const endpoints = [1, 2].map(last => ({address: `${net}.${(index & 0x3f) * 4 + last}`, port: 8080, spiffeId}));
		registry.addService({host, namespace, port: 80, targetPort: 8080, protocol: 'http', endpoints});
	}
	registry.removeServices(known);
	return changed.union(known);
}
