import {isRecord} from './metadata.ts';
import type {LoadedConfig, Origin} from './types.ts';

/** Maps whose names other people choose; only there can a secret be, as settings of ours hold none. */
const freeMaps = [
	'workload.metadata',
	'workload.labels',
	'workload.proxyConfig',
	'controlPlane.xdsHeaders',
	'controlPlane.caHeaders',
	'proxy.runtimeValues',
	'health.probes',
];

/** A header exists to authenticate or to route, and its name does not always say which. */
const headerMaps = ['controlPlane.xdsHeaders', 'controlPlane.caHeaders'];

const secretName =
	/token|secret|password|passwd|credential|authorization|cookie|api[-_]?key|(?:^|[-_])key(?:$|[-_])|[a-z]Key$/i;

/** A path, a switch or a number is no secret, whatever its name: TLS_CLIENT_KEY is a path, PKCS8_KEY a switch. */
const harmless = /^(?:\/[\w./-]*|\.\/[\w./-]*|true|false|\d{1,6}|)$/;

/**
 * The configuration as `config print` shows it: each leaf with its origin, what may be a secret as `[redacted]`,
 * always in the same order. Ends in a line end.
 */
export function renderConfig(loaded: LoadedConfig, format: 'yaml' | 'json'): string {
	return format === 'json' ? `${JSON.stringify(renderJson(loaded), undefined, '\t')}\n` : renderYaml(loaded);
}

/** Maps that are shown entry by entry; any other object below a leaf is a value. */
function isSection(path: string, value: unknown, origins: LoadedConfig['origins']): value is Record<string, unknown> {
	return isRecord(value) && !origins.has(path) && Object.keys(value).length > 0;
}

function renderJson({config, origins, warnings}: LoadedConfig): unknown {
	const visit = (value: unknown, path: string): unknown =>
		isSection(path, value, origins)
			? Object.fromEntries(Object.entries(value).map(([name, child]) => [name, visit(child, join(path, name))]))
			: {value: present(value, path) ?? null, origin: origins.get(path) ?? nowhere};
	return {config: visit(config, ''), warnings};
}

function renderYaml({config, origins, warnings}: LoadedConfig): string {
	const lines = warnings.map(warning => `# warning: ${warning.replaceAll('\n', ' ')}`);
	const visit = (value: Record<string, unknown>, path: string, indent: string): void => {
		for (const [name, child] of Object.entries(value)) {
			const at = join(path, name);
			if (isSection(at, child, origins)) {
				lines.push(`${indent}${scalar(name)}:`);
				visit(child, at, `${indent}  `);
			} else
				lines.push(
					`${indent}${scalar(name)}: ${scalar(present(child, at))}  # ${renderOrigin(origins.get(at) ?? nowhere)}`,
				);
		}
	};
	visit(config as unknown as Record<string, unknown>, '', '');
	return `${lines.join('\n')}\n`;
}

/** Of a map without entries. */
const nowhere: Origin = {kind: 'default', place: 'default'};

const renderOrigin = ({kind, place}: Origin): string =>
	kind === place ? kind : `${kind} ${place.replaceAll('\n', ' ')}`;

const join = (path: string, name: string): string => (path === '' ? name : `${path}.${name}`);

/** JSON is YAML, so only words that need no quotes are written without. */
function scalar(value: unknown): string {
	if (value === undefined) return 'null';
	const isWord =
		typeof value === 'string' &&
		/^[A-Za-z/][\w./-]*$/.test(value) &&
		!/^(?:true|false|null|yes|no|on|off|y|n)$/i.test(value);
	return isWord ? value : JSON.stringify(value);
}

function present(value: unknown, path: string): unknown {
	// As it is written in the file; 384 says nothing to anyone.
	if (path === 'identity.outputKeyMode') return `0${Number(value).toString(8)}`;
	if (headerMaps.some(each => path.startsWith(`${each}.`))) return '[redacted]';
	const map = freeMaps.find(each => path === each || path.startsWith(`${each}.`));
	if (map === undefined) return value;
	return redactBelow(value, path === map ? '' : path.slice(map.length + 1));
}

function redactBelow(value: unknown, name: string): unknown {
	if (Array.isArray(value)) return value.map(item => redactBelow(item, name));
	if (isRecord(value)) {
		// A header or variable as {name, value}: the name stands beside what it names.
		const named = typeof value['name'] === 'string' ? value['name'] : name;
		return Object.fromEntries(
			Object.entries(value).map(([key, child]) => [key, redactBelow(child, key === 'value' ? named : key)]),
		);
	}
	return typeof value === 'string' && secretName.test(name) && !harmless.test(value) ? '[redacted]' : value;
}
