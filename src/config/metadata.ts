import type {Variable} from './layers.ts';
import {show} from './problems.ts';
import type {Resolver} from './resolver.ts';
import {table} from './settings.ts';
import {boolean} from './values.ts';

/** Stand elsewhere in WorkloadConfig, or are made by the agent from what does. */
const named: ReadonlySet<string> = new Set([
	...['CLUSTER_ID', 'AUTO_REGISTER_GROUP', 'ISTIO_VERSION', 'DNS_CAPTURE'],
	...['NAME', 'NAMESPACE', 'SERVICE_ACCOUNT', 'INSTANCE_IPS', 'STATIC_LABELS', 'LABELS', 'PROXY_CONFIG'],
]);

/** istiod reads these as a number, a map or a list, and refuses the whole stream when they are text. */
const untextual: ReadonlySet<string> = new Set([
	...['ANNOTATIONS', 'PILOT_SAN', 'PLATFORM_METADATA', 'LABELS', 'STATIC_LABELS', 'PROXY_CONFIG', 'ENVOY_STATUS_PORT'],
	...['ENVOY_PROMETHEUS_PORT', 'ENVOY_SECURE_METRICS_PORT', 'ENVOY_SECURE_MERGED_METRICS_PORT'],
]);

/** istiod's StringBool: text, but only "true" or "false". */
const stringBooleans: ReadonlySet<string> = new Set([
	...['DNS_AUTO_ALLOCATE', 'ENABLE_HBONE', 'DISABLE_HBONE_SEND', 'ENABLE_SELF_DISCOVERY', 'METADATA_DISCOVERY'],
	...['INBOUND_LISTENER_EXACT_BALANCE', 'OUTBOUND_LISTENER_EXACT_BALANCE', 'EXIT_ON_ZERO_ACTIVE_CONNECTIONS'],
	'ENVOY_SKIP_DEPRECATED_LOGS',
]);

/** Every `ISTIO_META_X` as `X`, under `workload.metadata` of the settings; checked as istiod will read it. */
export function readMetadata(resolver: Resolver): Readonly<Record<string, string>> {
	const {findings} = resolver;
	const entries = new Map<string, string>();
	const add = (name: string, variable: Variable): void => {
		if (untextual.has(name)) {
			findings.warn(variable.place, `metadata ${name} is left out: istiod does not read it as text`);
			return;
		}
		if (named.has(name)) return;
		const value = checkValue(resolver, name, variable);
		if (value === undefined) return;
		entries.set(name, value);
		resolver.note(`workload.metadata.${name}`, variable.origin);
	};
	for (const [name, variable] of resolver.variables('ISTIO_META_')) if (name !== '') add(name, variable);
	const own = resolver.optional(table.metadata);
	for (const [name, value] of Object.entries(own?.value ?? {})) {
		if (named.has(name))
			findings.problem(
				own!.place,
				`workload.metadata.${name} has a setting of its own, or is made by the agent`,
				'take it out of workload.metadata',
			);
		else add(name, {...own!, value});
	}
	resolver.origins.delete('workload.metadata');
	for (const name of resolver.variables('ISTIO_METAJSON_').keys())
		if (name !== 'LABELS') findings.warn(`ISTIO_METAJSON_${name}`, 'is not used: only labels can be given as JSON');
	return Object.fromEntries([...entries].toSorted(byName));
}

function checkValue({findings}: Resolver, name: string, {value, place}: Variable): string | undefined {
	if (stringBooleans.has(name)) {
		try {
			return String(boolean.parse(value, '/'));
		} catch {
			findings.problem(
				place,
				`ISTIO_META_${name} ${show(value)} is neither true nor false`,
				'istiod would refuse the connection: give true or false',
			);
			return undefined;
		}
	}
	if (name === 'POD_PORTS' && value !== '' && !Array.isArray(parseJson(value))) {
		findings.problem(
			place,
			`ISTIO_META_POD_PORTS ${show(value)} is not a JSON list`,
			'istiod would refuse the connection: copy the bundle again',
		);
		return undefined;
	}
	return value;
}

/** ISTIO_METAJSON_LABELS, under `workload.labels` of the settings. */
export function readLabels(resolver: Resolver): Readonly<Record<string, string>> {
	const {findings} = resolver;
	const labels = new Map<string, string>();
	const variable = resolver.variable('ISTIO_METAJSON_LABELS');
	if (variable?.value) {
		const parsed = parseJson(variable.value);
		const values = isRecord(parsed) ? Object.entries(parsed) : undefined;
		if (!values?.every((entry): entry is [string, string] => typeof entry[1] === 'string'))
			findings.problem(
				variable.place,
				`ISTIO_METAJSON_LABELS ${show(variable.value)} is not a JSON object of texts`,
				'write {"name":"value"}; copy the bundle again',
			);
		else
			for (const [name, value] of values) {
				labels.set(name, value);
				resolver.note(`workload.labels.${name}`, variable.origin);
			}
	}
	const own = resolver.optional(table.labels);
	for (const [name, value] of Object.entries(own?.value ?? {})) {
		labels.set(name, value);
		resolver.note(`workload.labels.${name}`, own!.origin);
	}
	resolver.origins.delete('workload.labels');
	return Object.fromEntries([...labels].toSorted(byName));
}

/** The value, or undefined for what is no JSON. */
export function parseJson(text: string): unknown {
	try {
		return JSON.parse(text);
	} catch {
		// undefined is no JSON value, so the caller can tell.
		return undefined;
	}
}

export const isRecord = (value: unknown): value is Record<string, unknown> =>
	typeof value === 'object' && value !== null && !Array.isArray(value);

export const byName = ([left]: readonly [string, unknown], [right]: readonly [string, unknown]): number =>
	left < right ? -1 : 1;
