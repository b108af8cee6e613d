import {lookup} from 'node:dns/promises';
import {isIP} from 'node:net';
import type {Endpoint} from '../config/types.ts';
import {AgentError} from '../errors.ts';

export type Lookup = (host: string) => Promise<readonly string[]>;

/** The system's own look-up (getaddrinfo): /etc/hosts, nss and DNS, in the system's order. */
export const systemLookup: Lookup = async host => (await lookup(host, {all: true})).map(({address}) => address);

/**
 * Addresses of an endpoint: a literal is itself; then the bundle's `hosts`, so that nobody has to edit /etc/hosts;
 * then the system.
 */
export async function resolveEndpoint(
	{host, port}: Endpoint,
	hosts: Readonly<Record<string, readonly string[]>>,
	systemLookup: Lookup,
): Promise<readonly string[]> {
	if (isIP(host)) return [host];
	const listed = hosts[host.toLowerCase()];
	if (listed && listed.length > 0) return listed;
	try {
		const found = await systemLookup(host);
		if (found.length > 0) return found;
		throw new Error('no address');
	} catch (cause) {
		throw new AgentError('control_plane.unreachable', `look up control plane ${host}:${port}: no address found`, {
			cause,
			hint: `add "ADDRESS ${host}" to the bundle's hosts file (istioctl leaves it empty when it finds no ingress), or make the name resolvable`,
		});
	}
}

/** `host:port`, with brackets around an IPv6 address. */
export function formatEndpoint({host, port}: Pick<Endpoint, 'host' | 'port'>): string {
	return isIP(host) === 6 ? `[${host}]:${port}` : `${host}:${port}`;
}
