import {join} from 'node:path';
import {byDefault, type Resolver} from './resolver.ts';
import {table} from './settings.ts';
import type {DnsConfig} from './types.ts';

/** @param isAsked - what the bundle, or `workload.dns-capture`, says */
export function readDns(resolver: Resolver, isAsked: boolean, stateDir: string): DnsConfig {
	const asked = resolver.take(table.dnsMode);
	const mode = asked === 'auto' ? (isAsked ? 'capture' : 'off') : asked;
	if (asked === 'auto') resolver.note(table.dnsMode.leaf, resolver.origins.get(table.dnsCapture.leaf) ?? byDefault);
	resolver.note('dns.stateDir', resolver.origins.get(table.stateDir.leaf) ?? byDefault);
	return {
		mode,
		addresses: resolver.take(table.dnsAddresses),
		port: resolver.take(table.dnsPort),
		upstreams: resolver.take(table.dnsUpstreams),
		resolvConfPath: resolver.take(table.dnsResolvConf),
		resolvedConfPath: resolver.take(table.dnsResolvedConf),
		timeoutMs: resolver.take(table.dnsTimeout),
		ttlSeconds: Math.round(resolver.take(table.dnsTtl) / 1000),
		meshDomains: resolver.orElse(table.dnsMeshDomains, undefined, byDefault).value,
		mostInFlight: resolver.take(table.dnsMostInFlight),
		stateDir: join(stateDir, 'dns'),
		link: resolver.take(table.dnsLink),
	};
}

/** What the control plane is told follows from what is done. */
export function noteCapture(resolver: Resolver): void {
	const origin = resolver.origins.get(table.dnsMode.leaf) ?? byDefault;
	resolver.note(table.dnsCapture.leaf, origin);
}
