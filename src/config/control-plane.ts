import {ipFamily} from './ip.ts';
import type {Variable} from './layers.ts';
import {byName} from './metadata.ts';
import {byDefault, type Resolver} from './resolver.ts';
import {type Setting, table} from './settings.ts';
import type {BundleSource} from './sources.ts';
import type {ControlPlaneConfig, Endpoint, Origin} from './types.ts';
import {checkHeader, ValueError} from './values.ts';

export interface ControlPlaneSources {
	readonly bundle: BundleSource | undefined;
	/** The bundle's own `hosts`. */
	readonly hosts: ReadonlyMap<string, readonly string[]>;
	readonly credentialPath: string | undefined;
	/** controlPlaneAuthPolicy of ProxyConfig. */
	readonly authPolicy: unknown;
}

/** istiod closes connections that ping more often than half its own interval. */
const leastKeepaliveMs = 15_000;

export function readControlPlane(resolver: Resolver, sources: ControlPlaneSources): ControlPlaneConfig {
	const {bundle, hosts, authPolicy, credentialPath} = sources;
	const inBundle: Origin = bundle ? {kind: 'bundle', place: bundle.path} : byDefault;
	const isPlaintext = authPolicy === 'NONE' || authPolicy === 0;
	const endpoints = resolver.take(table.endpoints).map(each => (isPlaintext ? {...each, isPlaintext} : each));
	const endpointsOrigin = resolver.origins.get(table.endpoints.leaf)!;
	const ca = resolver.orElse(table.caEndpoints, endpoints, endpointsOrigin);
	const serverName = resolver.orElse(table.serverName, undefined, byDefault).value;
	const rootPath = bundle?.rootCertPath ?? '/etc/certs/root-cert.pem';
	const trustAnchor = resolver.orElse(table.rootCert, {kind: 'file', path: rootPath}, inBundle);
	const keepaliveMs = resolver.take(table.keepalive);

	const {findings} = resolver;
	if (serverName === undefined) warnOfAddresses(resolver, [...endpoints, ...ca.value]);
	if (ca.value.some(each => each.isPlaintext))
		findings.warn(ca.place, 'a CA endpoint without TLS gives no certificates');
	if (keepaliveMs < leastKeepaliveMs)
		findings.warn(table.keepalive.key, 'istiod may close connections that ping more often than each 15s');
	const tokenPath = resolver.orElse(
		table.tokenPath,
		bundle?.tokenPath ?? '/var/run/secrets/tokens/istio-token',
		inBundle,
	);
	// Who names a file means that file.
	const credential = tokenPath.origin === inBundle ? credentialPath : undefined;
	resolver.note(
		'controlPlane.credentialPath',
		credential === undefined ? byDefault : {kind: 'environment', place: 'CREDENTIALS_DIRECTORY'},
	);
	return {
		endpoints,
		caEndpoints: ca.value,
		serverName,
		trustAnchor: trustAnchor.value,
		caTrustAnchor: resolver.orElse(table.caRootCert, trustAnchor.value, trustAnchor.origin).value,
		hosts: readHosts(resolver, hosts, bundle),
		xdsHeaders: readHeaders(resolver, table.xdsHeaders, 'XDS_HEADER_'),
		caHeaders: readHeaders(resolver, table.caHeaders, 'CA_HEADER_'),
		tokenPath: tokenPath.value,
		credentialPath: credential,
		tokenProgram: resolver.take(table.tokenProgram),
		tokenAudience: resolver.take(table.tokenAudience),
		connectTimeoutMs: resolver.take(table.connectTimeout),
		keepaliveMs,
		keepaliveTimeoutMs: resolver.take(table.keepaliveTimeout),
		backoffBaseMs: resolver.take(table.backoffBase),
		backoffMaxMs: resolver.take(table.backoffMax),
	};
}

/** istiod's certificate names hosts, never addresses. */
function warnOfAddresses({findings}: Resolver, endpoints: readonly Endpoint[]): void {
	for (const host of new Set(endpoints.filter(each => !each.isPlaintext).map(each => each.host)))
		if (ipFamily(host) !== 0)
			findings.warn(
				table.endpoints.key,
				`${host} is an address, which istiod's certificate does not hold; set control-plane.server-name (istiod.istio-system.svc)`,
			);
}

function readHosts(
	resolver: Resolver,
	ofBundle: ReadonlyMap<string, readonly string[]>,
	bundle: BundleSource | undefined,
): ControlPlaneConfig['hosts'] {
	const hosts = new Map(ofBundle);
	for (const name of ofBundle.keys())
		resolver.note(`controlPlane.hosts.${name}`, {kind: 'bundle', place: bundle?.hosts?.path ?? 'hosts'});
	const own = resolver.optional(table.hosts);
	resolver.origins.delete(table.hosts.leaf);
	for (const [name, addresses] of Object.entries(own?.value ?? {})) {
		hosts.set(name, addresses);
		resolver.note(`controlPlane.hosts.${name}`, own!.origin);
	}
	return Object.fromEntries([...hosts].toSorted(byName));
}

function readHeaders(
	resolver: Resolver,
	setting: Setting<Readonly<Record<string, string>>>,
	prefix: string,
): Readonly<Record<string, string>> {
	const headers = new Map<string, string>();
	const add = (name: string, value: string, {origin, place}: Pick<Variable, 'origin' | 'place'>): void => {
		try {
			checkHeader(name, value);
			headers.set(name, value);
			resolver.note(`${setting.leaf}.${name}`, origin);
		} catch (error) {
			if (!(error instanceof ValueError)) throw error;
			resolver.findings.problem(place, error.message, `take ${prefix}… out, or mend it`);
		}
	};
	for (const [name, variable] of resolver.variables(prefix)) add(name.toLowerCase(), variable.value, variable);
	const own = resolver.optional(setting);
	resolver.origins.delete(setting.leaf);
	for (const [name, value] of Object.entries(own?.value ?? {})) add(name, value, own!);
	return Object.fromEntries([...headers].toSorted(byName));
}
