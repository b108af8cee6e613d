import {byDefault, type Resolver} from './resolver.ts';
import type {Config} from './types.ts';

/** Envoy's and Istio's ports on every sidecar: none of them can be the application's. */
const istioPorts = [15_000, 15_001, 15_004, 15_006, 15_008, 15_020, 15_021, 15_053, 15_090];
/** Where istiod's listeners bind; none of our own may. */
const takenPorts = [15_001, 15_006, 15_008];

/** Settings that are fine each, but not together. */
export function findConflicts(config: Config, resolver: Resolver): void {
	findPortConflicts(config, resolver);
	findSocketConflicts(config, resolver);
	findOrderConflicts(config, resolver);
	if (config.capture.isByAgent && !config.capture.isEnabled)
		complain(
			resolver,
			'capture.isByAgent',
			'contradicts capture.enabled (ISTIO_CUSTOM_IP_TABLES in a bundle)',
			'set capture.enabled to true if the rules are to be made by onramp',
		);
}

function findPortConflicts({proxy, status, dns}: Config, resolver: Resolver): void {
	const own = [
		['dns.port', dns.port],
		['status.port', status.port],
		['proxy.readinessPort', proxy.readinessPort],
		['proxy.metricsPort', proxy.metricsPort],
	] as const;
	const used = new Map<number, string>(takenPorts.map(port => [port, 'the mesh']));
	for (const [leaf, port] of own) {
		if (port === 0) continue;
		const other = used.get(port);
		if (other) complain(resolver, leaf, `port ${port} is also that of ${keyOf(other)}`, 'give each its own port');
		used.set(port, leaf);
	}
	const reserved = new Set([...istioPorts, ...own.map(([, port]) => port)]);
	for (const {port} of status.appMetrics)
		if (reserved.has(port))
			complain(
				resolver,
				'status.appMetrics',
				`port ${port} belongs to the mesh, so the application cannot serve metrics there`,
				"give the application's own port",
			);
}

function findSocketConflicts({proxy, status, relay}: Config, resolver: Resolver): void {
	const used = new Map<string, string>();
	const paths = [
		['relay.socketPath', relay.socketPath],
		['status.controlSocketPath', status.controlSocketPath],
		['proxy.adminSocketPath', proxy.adminSocketPath],
		['proxy.bootstrapPath', proxy.bootstrapPath],
		['proxy.recordPath', proxy.recordPath],
		['proxy.logPath', proxy.logPath],
	] as const;
	for (const [leaf, path] of paths) {
		const other = used.get(path);
		if (other && path) complain(resolver, leaf, `"${path}" is also that of ${keyOf(other)}`, 'give each its own path');
		used.set(path, leaf);
	}
}

function findOrderConflicts({controlPlane, proxy, identity}: Config, resolver: Resolver): void {
	const ordered = [
		['controlPlane.backoffBaseMs', controlPlane.backoffBaseMs, controlPlane.backoffMaxMs, 'control-plane.backoff-max'],
		['proxy.restartBackoffBaseMs', proxy.restartBackoffBaseMs, proxy.restartBackoffMaxMs, 'proxy.restart-backoff-max'],
		['proxy.terminationDrainMs', proxy.terminationDrainMs, proxy.drainCeilingMs, 'proxy.drain-ceiling'],
	] as const;
	for (const [leaf, low, high, name] of ordered)
		if (low > high) complain(resolver, leaf, `is longer than ${name}`, `raise ${name}`);
	if (identity.rideOutMs >= identity.certificateLifetimeMs)
		complain(
			resolver,
			'identity.rideOutMs',
			'is not shorter than identity.certificate-lifetime',
			'ask for a longer life, or ride out less',
		);
}

/** At the place of the setting, or its name when it is a default. */
function complain({origins, findings}: Resolver, leaf: string, message: string, remedy: string): void {
	const {kind, place} = origins.get(leaf) ?? byDefault;
	const key = keyOf(leaf);
	findings.problem(kind === 'default' ? key : place, kind === 'default' ? message : `${key} ${message}`, remedy);
}

/** `proxy.readinessPort` → `proxy.readiness-port`. */
const keyOf = (leaf: string): string =>
	leaf
		.replace(/(?:Path|Ms)$/, '')
		.replace(/\.is([A-Z])/, '.$1')
		.replace(/\.[A-Z]/, letter => letter.toLowerCase())
		.replace(/[A-Z]/g, letter => `-${letter.toLowerCase()}`);
