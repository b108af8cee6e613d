import {isMap, isSeq, type Pair, type YAMLMap} from 'yaml';
import type {Assignment} from './cluster-env.ts';
import {type FileFindings, show} from './problems.ts';
import {keyOf, openYaml, toPlain, type YamlFile} from './yaml.ts';

/** One ProxyConfig as a file or PROXY_CONFIG has it. */
export interface ParsedProxyConfig {
	/** proto-JSON, top-level names in camelCase; `proxyMetadata` values are strings. */
	readonly fields: Readonly<Record<string, unknown>>;
	readonly lines: ReadonlyMap<string, number>;
	readonly metadata: ReadonlyMap<string, Assignment>;
	/** Keys without a value, at any depth, dotted; in proto-JSON that is "not set". */
	readonly unset: readonly {readonly name: string; readonly line: number}[];
}

const empty: ParsedProxyConfig = {fields: {}, lines: new Map(), metadata: new Map(), unset: []};

type Kind = 'text' | 'duration' | 'integer' | 'boolean' | 'enum' | 'map' | 'list';

/**
 * What istiod's proto-JSON reader takes for the fields of istio.mesh.v1alpha1.ProxyConfig. A wrong type makes it
 * refuse the whole stream, so it is found here, where there is a line to point at.
 */
const kinds: Readonly<Record<Kind, readonly string[]>> = {
	text: [
		'configPath',
		'binaryPath',
		'serviceCluster',
		'discoveryAddress',
		'statsdUdpAddress',
		'customConfigFile',
		'proxyBootstrapTemplatePath',
		'meshId',
	],
	duration: ['drainDuration', 'terminationDrainDuration', 'fileFlushInterval'],
	integer: ['proxyAdminPort', 'statusPort', 'concurrency', 'statNameLength', 'fileFlushMinSizeKb'],
	boolean: ['statsCompression'],
	enum: ['controlPlaneAuthPolicy', 'interceptionMode', 'tracingServiceName'],
	map: [
		...['proxyMetadata', 'runtimeValues', 'readinessProbe', 'proxyStatsMatcher', 'proxyHeaders', 'connectionSettings'],
		...['tracing', 'envoyAccessLogService', 'envoyMetricsService', 'privateKeyProvider'],
	],
	list: ['caCertificatesPem', 'extraStatTags'],
};

const kindOf = new Map(
	Object.entries(kinds).flatMap(([kind, names]) => names.map(name => [name, kind as Kind] as const)),
);

/** Maps of strings in the proto; YAML's `true` and `15` are turned into text, which Istio would refuse. */
const stringMaps = ['proxyMetadata', 'runtimeValues'];

/** Reads `mesh.yaml`: a MeshConfig of which `defaultConfig` is used. Unknown fields are kept, as Istio keeps them. */
export function parseMeshYaml(text: string, findings: FileFindings): ParsedProxyConfig {
	const file = openYaml(text, findings);
	const pair = file?.root.items.findLast(({key}) => ['defaultConfig', 'default_config'].includes(keyOf(key)));
	const config = file?.follow(pair?.value);
	if (!file || !pair || toPlain(file, config) === null) {
		findings.warn(0, 'has no "defaultConfig"; the defaults of Istio are used');
		return empty;
	}
	if (!isMap(config)) {
		findings.problem(
			file.lineOf(pair.key),
			'"defaultConfig" is not a map',
			'copy the file again, as istioctl wrote it',
		);
		return empty;
	}
	return readProxyConfig(file, config, findings);
}

/** Reads the variable PROXY_CONFIG: the YAML of a ProxyConfig itself. */
export function parseProxyConfig(text: string, findings: FileFindings): ParsedProxyConfig {
	const file = openYaml(text, findings);
	return file ? readProxyConfig(file, file.root, findings) : empty;
}

function readProxyConfig(file: YamlFile, map: YAMLMap, findings: FileFindings): ParsedProxyConfig {
	const lines = new Map<string, number>();
	const fields = new Map<string, unknown>();
	let metadata: ReadonlyMap<string, Assignment> = new Map();
	for (const pair of map.items) {
		const name = camelCase(keyOf(pair.key));
		const value = toPlain(file, pair.value);
		const line = file.lineOf(pair.key);
		// In proto-JSON null is "not set".
		if (value === null) continue;
		const fault = faultOf(kindOf.get(name), value);
		if (fault) {
			findings.problem(line, `${name} ${fault}`, 'give it the type that Istio documents for ProxyConfig');
			continue;
		}
		lines.set(name, line);
		if (!stringMaps.includes(name)) fields.set(name, value);
		else {
			const entries = readStringMap(file, pair, findings);
			fields.set(name, Object.fromEntries([...entries].map(([key, entry]) => [key, entry.value])));
			if (name === 'proxyMetadata') metadata = entries;
		}
	}
	return {fields: Object.fromEntries(fields), lines, metadata, unset: findUnset(file, map, '')};
}

function findUnset(file: YamlFile, node: unknown, prefix: string): {name: string; line: number}[] {
	const target = file.follow(node);
	if (!isMap(target)) return [];
	return target.items.flatMap(({key, value}) => {
		const name = `${prefix}${keyOf(key)}`;
		return toPlain(file, value) === null ? [{name, line: file.lineOf(key)}] : findUnset(file, value, `${name}.`);
	});
}

function readStringMap(
	file: YamlFile,
	{key: owner, value: node}: Pair,
	findings: FileFindings,
): ReadonlyMap<string, Assignment> {
	const entries = new Map<string, Assignment>();
	const map = file.follow(node);
	if (!isMap(map)) return entries;
	for (const {key, value} of map.items) {
		const name = keyOf(key);
		const line = file.lineOf(key);
		const where = `${keyOf(owner)}.${name}`;
		const target = file.follow(value);
		const text = file.textOf(value);
		if (isMap(target) || isSeq(target)) findings.problem(line, `${where} is not text`, 'write one value, in quotes');
		else if (text === undefined) continue;
		else {
			const isText = typeof toPlain(file, value) === 'string';
			if (!isText)
				findings.warn(line, `${where} is not text in YAML; it is taken as ${show(text)} (write it in quotes)`);
			entries.set(name, {value: text, line});
		}
	}
	return entries;
}

/** What is wrong with a value of that kind, or undefined. proto-JSON takes whole numbers as text too. */
function faultOf(kind: Kind | undefined, value: unknown): string | undefined {
	switch (kind) {
		case 'text':
			return typeof value === 'string' ? undefined : `is ${describe(value)}, not text`;
		case 'duration':
			return isDuration(value) ? undefined : `is ${describe(value)}, not a duration in seconds such as "45s"`;
		case 'integer':
			return /^\d{1,10}$/.test(String(value)) && typeof value !== 'object'
				? undefined
				: `is ${describe(value)}, not a whole number`;
		case 'boolean':
			return typeof value === 'boolean' ? undefined : `is ${describe(value)}, not true or false`;
		case 'enum':
			return typeof value === 'string' || Number.isInteger(value)
				? undefined
				: `is ${describe(value)}, not one of its names`;
		case 'map':
			return typeof value === 'object' && !Array.isArray(value) ? undefined : `is ${describe(value)}, not a map`;
		case 'list':
			return Array.isArray(value) ? undefined : `is ${describe(value)}, not a list`;
		case undefined:
			return undefined;
	}
}

/** proto-JSON writes durations in seconds only: `1m` would make istiod refuse the node. */
const isDuration = (value: unknown): boolean => typeof value === 'string' && /^\d{1,9}(?:\.\d{1,9})?s$/.test(value);

function describe(value: unknown): string {
	if (Array.isArray(value)) return 'a list';
	return typeof value === 'object' ? 'a map' : show(String(value));
}

const camelCase = (name: string): string => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
