import {hash} from 'node:crypto';
import {dirname, join, resolve} from 'node:path';
import {reasonOf} from '../errors.ts';
import type {HostNetwork} from './host-network.ts';
import {type Environment, environmentLayer, fileLayer, flagLayer, type Layer, type ParsedFlags} from './layers.ts';
import {parseOnrampYaml} from './onramp-yaml.ts';
import {parseConfig} from './parse.ts';
import {FileFindings, Findings} from './problems.ts';
import type {FileReader} from './reader.ts';
import {settings, table} from './settings.ts';
import type {BundleSource, HostFacts, SourceFile} from './sources.ts';
import {decodeText, maxFileBytes} from './text-file.ts';
import type {LoadedConfig, ReadFile} from './types.ts';

export interface LoadInput {
	/** What yargs has parsed; keys are flag names, others are left alone. */
	readonly argv: ParsedFlags;
	readonly env: Environment;
	/** `cwd` is where relative paths of flags and environment start; that of the process by default. */
	readonly host: HostNetwork & Pick<HostFacts, 'hostname' | 'keptCloudAddress'> & {readonly cwd?: string};
	readonly files: FileReader;
	/** Refuses a bundle that seems cut short, rather than warn of it: before it is taken into use. */
	readonly isStrict?: boolean;
}

/** Where `onramp join` keeps the settings it was given: beside the configuration file. */
export const keptPathOf = (configPath: string): string => join(dirname(configPath), 'join.yaml');

/**
 * Finds and reads the files, then parses. The only reader of the process's environment is the caller.
 * @throws AgentError `config.invalid` with every problem, those of reading included
 */
export function loadConfig({argv, env, host, files, isStrict = false}: LoadInput): LoadedConfig {
	const cwd = host.cwd ?? process.cwd();
	const findings = new Findings();
	const seen: ReadFile[] = [];
	const readFile = readInto(files, findings);
	const read: Read = path => {
		const file = readFile(path);
		seen.push({path, sha256: file ? hash('sha256', file.bytes, 'hex') : null});
		return file;
	};
	const pick = (layers: readonly Layer[], setting: typeof table.config | typeof table.bundle) => {
		const found = layers.map(layer => layer(setting)).find(each => each !== undefined);
		return found && typeof found.raw === 'string' && found.raw
			? {path: resolve(found.base, found.raw), place: found.place}
			: undefined;
	};
	const layers = [flagLayer(argv, cwd), environmentLayer(env, cwd)];
	const given = pick(layers, table.config);
	const configPath = given?.path ?? table.config.default;
	const file = read(configPath);
	const kept = read(keptPathOf(configPath));
	if (given && !file && findings.problems.length === 0)
		findings.problem(given.place, `there is no file "${given.path}"`, 'mend the path');
	const bundle = findBundle(
		files,
		read,
		findings,
		pick([...layers, ...ownFileLayer(file), ...ownFileLayer(kept)], table.bundle),
	);
	const credential = env['CREDENTIALS_DIRECTORY'] && join(env['CREDENTIALS_DIRECTORY'], 'istio-token');
	const credentialPath = credential && kindOf(files, credential) === 'file' ? credential : undefined;
	const envoyPath = kindOf(files, packagedEnvoy) === 'file' ? packagedEnvoy : istioEnvoy;
	const sources = {flags: argv, env, file, kept, bundle, host: {...host, cwd, envoyPath}, credentialPath};
	return {...parseConfig(sources, findings, isStrict ? 'refuse' : 'warn'), files: seen};
}

const packagedEnvoy = '/usr/lib/onramp/envoy';
const istioEnvoy = '/usr/local/bin/envoy';

type Read = (path: string) => SourceFile | undefined;

/** Reads a file; one that is there and cannot be read is a problem. */
function readInto(files: FileReader, findings: Findings): Read {
	return path => {
		try {
			const bytes = files.read(path, maxFileBytes);
			return bytes && {path, bytes};
		} catch (error) {
			findings.problem(
				path,
				`cannot be read: ${reasonOf(error)}`,
				'let the user of the agent read it, and its directories',
			);
			return undefined;
		}
	};
}

/** Only to learn where the bundle is; parseConfig reads the file again and tells its problems. */
export function ownFileLayer(file: SourceFile | undefined, findings: Findings = new Findings()): Layer[] {
	if (!file) return [];
	const unheard = new FileFindings(file.path, findings);
	const text = decodeText(file.bytes, unheard);
	return text === undefined ? [] : [fileLayer(file.path, parseOnrampYaml(text, settings, unheard))];
}

export const ownBundle = '/etc/onramp/bundle';

function findBundle(
	files: FileReader,
	read: Read,
	findings: Findings,
	given: {path: string; place: string} | undefined,
): BundleSource | undefined {
	if (given) {
		const kind = kindOf(files, given.path);
		if (kind === 'directory') return readDirectory(read, findings, given.path);
		const what = kind === undefined ? 'there is no directory' : 'this is not a directory:';
		findings.problem(
			given.place,
			`${what} "${given.path}"`,
			'name the directory that "istioctl x workload entry configure" wrote',
		);
		return undefined;
	}
	if (kindOf(files, ownBundle) === 'directory') return readDirectory(read, findings, ownBundle);
	return readIstioPlaces(files, read);
}

function readDirectory(read: Read, findings: Findings, path: string): BundleSource {
	const need = (name: string): SourceFile | undefined => {
		const before = findings.problems.length;
		const file = read(join(path, name));
		if (!file && findings.problems.length === before)
			findings.problem(join(path, name), 'this file of the bundle is missing', 'copy the whole bundle again');
		return file;
	};
	return {
		path,
		clusterEnv: need('cluster.env'),
		mesh: need('mesh.yaml'),
		hosts: read(join(path, 'hosts')),
		rootCertPath: join(path, 'root-cert.pem'),
		tokenPath: join(path, 'istio-token'),
		isDirectory: true,
	};
}

/** /etc/istio is a link to /var/lib/istio on machines with the package, and a directory on others. */
const istioPlaces = {clusterEnv: '/var/lib/istio/envoy/cluster.env', mesh: '/etc/istio/config/mesh'};
const istioRoots = ['/etc/certs/root-cert.pem', '/var/run/secrets/istio/root-cert.pem'];

function readIstioPlaces(files: FileReader, read: Read): BundleSource | undefined {
	const clusterEnv = read(istioPlaces.clusterEnv);
	const mesh = read(istioPlaces.mesh);
	if (!clusterEnv && !mesh) return undefined;
	return {
		path: dirname(dirname(istioPlaces.clusterEnv)),
		clusterEnv,
		mesh,
		// Istio's documents have it appended to /etc/hosts, which the resolver of the system reads.
		hosts: undefined,
		rootCertPath: istioRoots.find(path => kindOf(files, path) === 'file') ?? istioRoots[0]!,
		tokenPath: '/var/run/secrets/tokens/istio-token',
		isDirectory: false,
	};
}

/** As FileReader.kind; what cannot be looked at is handled as absent here, and told when it is read. */
function kindOf(files: FileReader, path: string): ReturnType<FileReader['kind']> {
	try {
		return files.kind(path);
	} catch {
		// A directory that may not be searched: reading its files names the reason.
		return 'other';
	}
}
