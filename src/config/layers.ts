import {basename, dirname} from 'node:path';
import type {Assignment} from './cluster-env.ts';
import type {ParsedProxyConfig} from './mesh-yaml.ts';
import type {FileEntry} from './onramp-yaml.ts';
import {type Findings, show} from './problems.ts';
import type {Setting} from './settings.ts';
import type {Origin} from './types.ts';
import {type Raw, ValueError} from './values.ts';

/** A setting as one source has it. */
export interface Found {
	readonly raw: Raw;
	readonly origin: Origin;
	/** Where a person would mend it, with the line. */
	readonly place: string;
	/** Directory that relative paths start from. */
	readonly base: string;
	/** Said by one of Istio's variables or files rather than by a setting of ours. */
	readonly isIstio: boolean;
}

/** One source of settings. The first layer that has a setting decides it. */
export type Layer = (setting: Setting) => Found | undefined;

/** A variable of Istio's, from the process or the bundle. */
export interface Variable {
	readonly value: string;
	readonly origin: Origin;
	readonly place: string;
}

export type Variables = ReadonlyMap<string, Variable>;
export type Environment = Readonly<Record<string, string | undefined>>;
/** What yargs has parsed; keys are flag names. */
export type ParsedFlags = Readonly<Record<string, unknown>>;

export function flagLayer(flags: ParsedFlags, cwd: string): Layer {
	return ({flag}) => {
		const value = Object.hasOwn(flags, flag) ? flags[flag] : undefined;
		if (value === undefined || value === null) return undefined;
		const raw = Array.isArray(value) ? value.map(String) : String(value);
		return {raw, origin: {kind: 'flag', place: `--${flag}`}, place: `--${flag}`, base: cwd, isIstio: false};
	};
}

/** Empty counts as not set: it is what an EnvironmentFile with a line left blank gives. */
export function environmentLayer(env: Environment, cwd: string): Layer {
	return setting => {
		const raw = env[setting.env];
		return raw
			? {raw, origin: {kind: 'environment', place: setting.env}, place: setting.env, base: cwd, isIstio: false}
			: undefined;
	};
}

export function fileLayer(path: string, entries: ReadonlyMap<string, FileEntry>): Layer {
	return ({key}) => {
		const entry = entries.get(key);
		const place = `${path}:${entry?.line}`;
		return entry && {raw: entry.raw, origin: {kind: 'file', place}, place, base: dirname(path), isIstio: false};
	};
}

/** Istio's files write paths from its working directory, which is `/`. */
const istioBase = '/';

export function variablesLayer(variables: Variables, findings: Findings): Layer {
	const get = (name: string): string | undefined => variables.get(name)?.value;
	return setting => {
		for (const {name, read = (value: string) => value} of setting.istio) {
			const variable = variables.get(name);
			if (!variable) continue;
			try {
				const raw = read(variable.value, get);
				if (raw !== undefined) return {...variable, raw, base: istioBase, isIstio: true};
			} catch (error) {
				if (!(error instanceof ValueError)) throw error;
				findings.problem(
					variable.place,
					`${name} ${show(variable.value)} ${error.message}`,
					`give ${setting.value.accepts}, or take it out`,
				);
			}
		}
		return undefined;
	};
}

/** Fields of ProxyConfig. The first config that has a field decides it. */
export function meshLayer(configs: readonly MeshSource[], findings: Findings): Layer {
	return ({mesh}) => {
		if (!mesh) return undefined;
		const [field = '', ...below] = mesh.path.split('.');
		const config = configs.find(({parsed}) => Object.hasOwn(parsed.fields, field));
		const value = below.reduce<unknown>(childOf, config?.parsed.fields[field]);
		if (!config || value === undefined) return undefined;
		const place = placeOf(config, field);
		const isList = Array.isArray(value) && value.every(item => typeof item === 'string');
		if (typeof value === 'object' && !isList) {
			findings.problem(
				place,
				`${mesh.path} is not of the type that Istio documents`,
				'copy the file again, as istioctl wrote it',
			);
			return undefined;
		}
		const raw = isList ? (value as readonly string[]) : (mesh.read ?? (text => text))(String(value));
		return raw === undefined
			? undefined
			: {raw, origin: originOf(config, field), place, base: istioBase, isIstio: true};
	};
}

const childOf = (value: unknown, name: string): unknown =>
	typeof value === 'object' && value !== null && Object.hasOwn(value, name)
		? (value as Record<string, unknown>)[name]
		: undefined;

/** A ProxyConfig and where it was read. */
export interface MeshSource {
	readonly parsed: ParsedProxyConfig;
	/** `…/mesh.yaml`, or the place of the variable PROXY_CONFIG. */
	readonly path: string;
	readonly kind: Origin['kind'];
}

const placeOf = ({path, parsed}: MeshSource, field: string): string => `${path}:${parsed.lines.get(field) ?? 1}`;
export const originOf = ({path, kind}: MeshSource, field: string): Origin => ({
	kind,
	place: `${basename(path)}:${field}`,
});

/** What a process that sourced cluster.env may have been given: the agent's own variables, not the start script's. */
const processNames: ReadonlySet<string> = new Set([
	...[
		'INSTANCE_IP',
		'POD_NAME',
		'POD_NAMESPACE',
		'SERVICE_ACCOUNT',
		'PROXY_CONFIG',
		'TRUST_DOMAIN',
		'CA_ADDR',
		'CA_PROVIDER',
	],
	...['PROV_CERT', 'OUTPUT_CERTS', 'XDS_ROOT_CA', 'CA_ROOT_CA', 'PILOT_CERT_PROVIDER', 'ISTIOD_SAN', 'TOKEN_AUDIENCES'],
	...['SECRET_TTL', 'SECRET_GRACE_PERIOD_RATIO', 'SECRET_GRACE_PERIOD_RATIO_JITTER', 'WORKLOAD_RSA_KEY_SIZE'],
	...[
		'ECC_SIGNATURE_ALGORITHM',
		'ECC_CURVE',
		'FILE_MOUNTED_CERTS',
		'WORKLOAD_IDENTITY_SOCKET_FILE',
		'ENVOY_STATUS_PORT',
	],
	...[
		'ENVOY_PROMETHEUS_PORT',
		'ISTIO_PROMETHEUS_ANNOTATIONS',
		'PILOT_AGENT_MERGE_ENVOY_STATS',
		'ISTIO_CPU_LIMIT',
		'DISABLE_ENVOY',
	],
	...['ISTIO_INBOUND_PORTS', 'ISTIO_LOCAL_EXCLUDE_PORTS', 'ISTIO_SERVICE_CIDR', 'ISTIO_SERVICE_EXCLUDE_CIDR'],
	...['ISTIO_OUTBOUND_PORTS', 'ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE', 'ISTIO_EXCLUDE_INTERFACES', 'KUBE_VIRT_INTERFACES'],
	...['ISTIO_OUTBOUND_OWNER_GROUPS', 'ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE', 'ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR'],
	...['ISTIO_INBOUND_INTERCEPTION_MODE', 'ISTIO_INBOUND_TPROXY_MARK', 'ISTIO_INBOUND_TPROXY_ROUTE_TABLE'],
	...['ISTIO_CUSTOM_IP_TABLES', 'INBOUND_CAPTURE_PORT', 'INBOUND_TUNNEL_PORT', 'ENVOY_USER', 'PROXY_UID', 'PROXY_GID'],
	...['CAPTURE_ALL_DNS', 'DROP_INVALID', 'INVALID_DROP', 'NATIVE_NFTABLES', 'FORCE_IPTABLES_BINARY'],
	'REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION',
	...['ISTIO_DELTA_XDS', 'PROXY_CONFIG_XDS_AGENT', 'GRPC_KEEPALIVE_INTERVAL', 'GRPC_KEEPALIVE_TIMEOUT'],
]);

const processPrefixes = ['ISTIO_META_', 'ISTIO_METAJSON_', 'XDS_HEADER_', 'CA_HEADER_'];

export function processVariables(env: Environment): Variables {
	const names = Object.keys(env).filter(
		name => processNames.has(name) || processPrefixes.some(prefix => name.startsWith(prefix)),
	);
	return new Map(
		names.toSorted().map(name => [name, {value: env[name]!, origin: {kind: 'environment', place: name}, place: name}]),
	);
}

/** Assignments of a bundle file as variables. */
export function bundleVariables(path: string, assignments: ReadonlyMap<string, Assignment>, prefix = ''): Variables {
	return new Map(
		[...assignments].map(([name, {value, line}]) => [
			name,
			{value, origin: {kind: 'bundle', place: `${basename(path)}:${prefix}${name}`}, place: `${path}:${line}`},
		]),
	);
}
