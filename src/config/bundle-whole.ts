import type {Assignment} from './cluster-env.ts';
import type {ParsedProxyConfig} from './mesh-yaml.ts';
import type {Problem} from './problems.ts';

interface TextFile {
	readonly path: string;
	readonly bytes: Uint8Array;
}

/** What is known of the text files of a bundle; undefined is a file that is missing or was not read. */
export interface BundleText {
	readonly clusterEnv: (TextFile & {readonly entries: ReadonlyMap<string, Assignment>}) | undefined;
	readonly mesh: (TextFile & {readonly parsed: ParsedProxyConfig}) | undefined;
	readonly hosts: TextFile | undefined;
}

/** istioctl writes these into every proxyMetadata, empty ones too, and copies all of it to cluster.env (workload.go). */
const metadataNames = [
	...['CANONICAL_REVISION', 'CANONICAL_SERVICE', 'ISTIO_METAJSON_LABELS', 'ISTIO_META_CLUSTER_ID'],
	...['ISTIO_META_MESH_ID', 'ISTIO_META_NETWORK', 'ISTIO_META_WORKLOAD_NAME'],
	...['POD_NAMESPACE', 'SERVICE_ACCOUNT', 'TRUST_DOMAIN'],
];

/** istioctl writes these over proxyMetadata in every cluster.env. */
const overrideNames = [
	...['ISTIO_INBOUND_PORTS', 'ISTIO_LOCAL_EXCLUDE_PORTS', 'ISTIO_NAMESPACE', 'ISTIO_SERVICE', 'ISTIO_SERVICE_CIDR'],
	'SERVICE_ACCOUNT',
];
const sometimesOverridden = ['CA_ADDR', 'ISTIO_SVC_IP', 'REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION'];

const again = 'the file seems to be cut short: copy the whole bundle again';

/**
 * Signs that a file ends too early although what is left of it is well-formed: a cut between two lines leaves both
 * formats readable. cluster.env is sorted and ends with TRUST_DOMAIN or later, so each cut loses a name that is
 * always there; mesh.yaml repeats its names. What follows proxyMetadata in mesh.yaml has no such double: a cut just
 * before one of those fields cannot be told.
 */
export function findCuts({clusterEnv, mesh, hosts}: BundleText): readonly Problem[] {
	const assigned = clusterEnv?.entries ?? new Map<string, Assignment>();
	const metadata = mesh?.parsed.metadata ?? new Map<string, Assignment>();
	const overridden = new Set([...overrideNames, ...sometimesOverridden]);
	const ofMetadata = [...assigned.keys()].filter(name => !overridden.has(name));
	return [
		...(clusterEnv ? lacking(clusterEnv.path, assigned, [...metadataNames, ...overrideNames, ...metadata.keys()]) : []),
		...(mesh ? lacking(mesh.path, metadata, [...metadataNames, ...ofMetadata], 'proxyMetadata.') : []),
		...(clusterEnv && mesh ? differing(clusterEnv, mesh, overridden) : []),
		...(mesh ? unfinished(mesh) : []),
		...[clusterEnv, mesh, hosts].flatMap(unended),
	];
}

const problem = (place: string, message: string, remedy: string): Problem => ({
	severity: 'error',
	place,
	message,
	remedy,
});

function lacking(
	path: string,
	present: ReadonlyMap<string, unknown>,
	expected: readonly string[],
	prefix = '',
): Problem[] {
	const missing = [...new Set(expected)].filter(name => !present.has(name)).map(name => `${prefix}${name}`);
	if (missing.length === 0) return [];
	const shown = missing.slice(0, 3).join(', ');
	const more = missing.length > 3 ? ` and ${missing.length - 3} more` : '';
	return [problem(path, `lacks what istioctl writes into every bundle: ${shown}${more}`, again)];
}

/** Two bundles in one directory: an interrupted copy over an older one. */
function differing(
	clusterEnv: NonNullable<BundleText['clusterEnv']>,
	mesh: NonNullable<BundleText['mesh']>,
	overridden: ReadonlySet<string>,
): Problem[] {
	const name = [...mesh.parsed.metadata.keys()].find(each => {
		const assigned = clusterEnv.entries.get(each);
		return assigned && !overridden.has(each) && assigned.value !== mesh.parsed.metadata.get(each)!.value;
	});
	return name === undefined
		? []
		: [
				problem(
					`${clusterEnv.path}:${clusterEnv.entries.get(name)!.line}`,
					`${name} is not what mesh.yaml says`,
					'the files are of two bundles: copy the whole bundle again, or write the same into both',
				),
			];
}

/** istioctl ends each line; only the token and the root certificate are somebody else's bytes. */
function unended(file: TextFile | undefined): Problem[] {
	return file === undefined || file.bytes.length === 0 || file.bytes.at(-1) === 0x0a
		? []
		: [problem(file.path, 'its last line has no end', again)];
}

const handlers = ['httpGet', 'tcpSocket', 'exec', 'grpc'];

/** A map that was begun and has nothing in it: the writer of istioctl leaves out what is not set. */
function unfinished({path, parsed}: NonNullable<BundleText['mesh']>): Problem[] {
	const field = parsed.unset[0];
	if (field) return [problem(`${path}:${field.line}`, `${field.name} has no value`, again)];
	const probe = parsed.fields['readinessProbe'] as Readonly<Record<string, unknown>> | undefined;
	if (!probe) return [];
	const place = `${path}:${parsed.lines.get('readinessProbe') ?? 1}`;
	const handler = handlers.find(name => Object.hasOwn(probe, name));
	if (!handler) return [problem(place, 'readinessProbe says neither httpGet, tcpSocket, exec nor grpc', again)];
	const {port, command} = (probe[handler] ?? {}) as Readonly<Record<string, unknown>>;
	return (handler === 'exec' ? command : port) === undefined
		? [problem(place, `readinessProbe.${handler} has no ${handler === 'exec' ? 'command' : 'port'}`, again)]
		: [];
}
