import {join} from 'node:path';
import {isRecord, parseJson} from './metadata.ts';
import {byDefault, type Resolver} from './resolver.ts';
import {type SettingWithDefault, table} from './settings.ts';
import type {HostFacts} from './sources.ts';
import type {Origin, ProxyConfig, RelayConfig, StatusConfig} from './types.ts';

/** What the mesh has for `runtimeValues`, with its origin. */
export interface RuntimeValues {
	readonly values: Readonly<Record<string, string>>;
	readonly origin: Origin;
}

export function readRelay(resolver: Resolver, isDnsCaptured: boolean, stateDir: string): RelayConfig {
	// Nobody else reads the table.
	resolver.note('relay.isNameTableWanted', resolver.origins.get(table.dnsCapture.leaf) ?? byDefault);
	return {
		protocol: resolver.take(table.relayProtocol),
		isNameTableWanted: isDnsCaptured,
		isProxyConfigWanted: resolver.take(table.proxyConfigWanted),
		removeUnknownExtensions: resolver.take(table.removeUnknownExtensions),
		socketPath: resolver.take(table.relaySocket),
		snapshotDir: resolver.take(table.relaySnapshot) ? join(stateDir, 'relay') : undefined,
	};
}

export function readProxy(
	resolver: Resolver,
	facts: HostFacts,
	addresses: readonly string[],
	runtime: RuntimeValues | undefined,
): ProxyConfig {
	return {
		mode: resolver.take(table.proxyMode),
		binaryPath: resolver.orElse(table.binary, facts.envoyPath, {kind: 'host', place: 'host'}).value,
		bootstrapPath: resolver.take(table.bootstrap),
		adminSocketPath: resolver.take(table.adminSocket),
		logPath: resolver.take(table.envoyLog),
		recordPath: resolver.take(table.record),
		logMaxBytes: resolver.take(table.logMax),
		concurrency: resolver.take(table.concurrency),
		logLevel: resolver.take(table.proxyLogLevel),
		componentLogLevel: resolver.take(table.componentLogLevel),
		adsProtocol: resolver.take(table.adsProtocol),
		readinessPort: resolver.take(table.readinessPort),
		metricsPort: resolver.take(table.metricsPort),
		listenAddress: readListenAddress(resolver, table.listenAddress, addresses),
		drainMs: resolver.take(table.drain),
		terminationDrainMs: resolver.take(table.terminationDrain),
		drainCeilingMs: resolver.take(table.drainCeiling),
		replaceTimeoutMs: resolver.take(table.replaceTimeout),
		replaceCeilingMs: resolver.take(table.replaceCeiling),
		crashBudget: resolver.take(table.crashBudget),
		crashWindowMs: resolver.take(table.crashWindow),
		restartBackoffBaseMs: resolver.take(table.restartBase),
		restartBackoffMaxMs: resolver.take(table.restartMax),
		maxDownstreamConnections: resolver.take(table.maxDownstreamConnections),
		statsPrefixes: resolver.take(table.statsPrefixes),
		statsSuffixes: resolver.take(table.statsSuffixes),
		statsRegexes: resolver.take(table.statsRegexes),
		runtimeValues: readRuntimeValues(resolver, runtime),
		extraArguments: resolver.take(table.extraArguments),
		onStop: resolver.take(table.onStop),
	};
}

export function readStatus(resolver: Resolver, addresses: readonly string[]): StatusConfig {
	return {
		address: readListenAddress(resolver, table.statusAddress, addresses),
		port: resolver.take(table.statusPort),
		controlSocketPath: resolver.take(table.controlSocket),
		appMetrics: readAppMetrics(resolver),
		isEnvoyMerged: resolver.take(table.envoyMerged),
	};
}

/** On a host with IPv6 only, `0.0.0.0` would be heard by nobody. */
function readListenAddress(
	resolver: Resolver,
	setting: SettingWithDefault<string>,
	addresses: readonly string[],
): string {
	if (resolver.find(setting) || addresses.some(address => !address.includes(':'))) return resolver.take(setting);
	resolver.note(setting.leaf, {kind: 'host', place: 'host'});
	return '::';
}

function readRuntimeValues(resolver: Resolver, runtime: RuntimeValues | undefined): Readonly<Record<string, string>> {
	const own = resolver.optional(table.runtimeValues);
	resolver.origins.delete(table.runtimeValues.leaf);
	if (runtime)
		for (const name of Object.keys(runtime.values))
			resolver.note(`${table.runtimeValues.leaf}.${name}`, runtime.origin);
	if (own) for (const name of Object.keys(own.value)) resolver.note(`${table.runtimeValues.leaf}.${name}`, own.origin);
	return {...runtime?.values, ...own?.value};
}

const annotations = 'ISTIO_PROMETHEUS_ANNOTATIONS';

/**
 * `status.app-metrics`, or Istio's JSON `{scrape, path, port, targets: [{port, path}]}`, all of whose values are
 * texts; without path and port it means `/metrics` and 80.
 */
function readAppMetrics(resolver: Resolver): StatusConfig['appMetrics'] {
	const variable = resolver.variable(annotations);
	if (resolver.find(table.appMetrics) || !variable?.value) return resolver.take(table.appMetrics);
	resolver.note(table.appMetrics.leaf, variable.origin);
	const parsed = parseJson(variable.value);
	const targets = isRecord(parsed) ? readTargets(parsed) : undefined;
	if (!targets)
		resolver.findings.problem(
			variable.place,
			`${annotations} is not {"scrape":"true","port":"8080","path":"/metrics"}`,
			'mend it, or use status.app-metrics',
		);
	return targets ?? [];
}

function readTargets(parsed: Record<string, unknown>): StatusConfig['appMetrics'] | undefined {
	if (String(parsed['scrape']) === 'false') return [];
	const targets = Array.isArray(parsed['targets']) && parsed['targets'].length > 0 ? parsed['targets'] : [parsed];
	const read = targets.map(target => {
		if (!isRecord(target)) return undefined;
		const port = Number(target['port'] || 80);
		const path = String(target['path'] || '/metrics');
		return Number.isInteger(port) && port > 0 && port < 65_536 && path.startsWith('/') ? {port, path} : undefined;
	});
	return read.every(target => target !== undefined) ? read : undefined;
}
