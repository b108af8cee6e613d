import {type BundleText, findCuts} from './bundle-whole.ts';
import {readCapture} from './capture.ts';
import {type Assignment, parseClusterEnv} from './cluster-env.ts';
import {findConflicts} from './conflicts.ts';
import {readControlPlane} from './control-plane.ts';
import {noteCapture, readDns} from './dns.ts';
import {readHealth} from './health.ts';
import {parseHosts} from './hosts.ts';
import {readIdentity} from './identity.ts';
import {
	bundleVariables,
	environmentLayer,
	fileLayer,
	flagLayer,
	type MeshSource,
	meshLayer,
	originOf,
	processVariables,
	type Variables,
	variablesLayer,
} from './layers.ts';
import {parseMeshYaml, parseProxyConfig} from './mesh-yaml.ts';
import {parseOnrampYaml} from './onramp-yaml.ts';
import {FileFindings, Findings, suggest} from './problems.ts';
import {type RuntimeValues, readProxy, readRelay, readStatus} from './proxy.ts';
import {readRegistration} from './registration.ts';
import {byDefault, Resolver} from './resolver.ts';
import {settings, table} from './settings.ts';
import type {BundleSource, SourceFile, Sources} from './sources.ts';
import {decodeText} from './text-file.ts';
import type {Config, LoadedConfig} from './types.ts';
import {effectiveProxyConfig, readAddresses, readWorkload} from './workload.ts';

/**
 * What was read → Config. Flags over ONRAMP_* over Istio's own variables in the process over the file over the
 * bundle over the host over defaults. Pure. Of onramp.yaml and what `join` has kept, the former.
 * @param findings - problems that were met while reading
 * @param doubts - what a bundle that seems cut short is: a problem before it is used, a warning once it is in use
 * @throws AgentError `config.invalid` with every problem
 */
export function parseConfig(
	sources: Sources,
	findings: Findings = new Findings(),
	doubts: 'refuse' | 'warn' = 'warn',
): Omit<LoadedConfig, 'files'> {
	const {flags, env, file, kept, bundle, host} = sources;
	refuseUnknownVariables(env, findings);
	const meshes = readMeshes(bundle, findings);
	const process = processVariables(env);
	const assignments = readFile(bundle?.clusterEnv, findings, parseClusterEnv);
	const ofBundle = readBundleVariables(bundle, meshes, assignments ?? new Map());
	// Before the look for cuts: of a file that cannot be read nothing more is said.
	const hosts = readFile(bundle?.hosts, findings, parseHosts) ?? new Map();
	if (bundle?.isDirectory) reportCuts(bundle, meshes, assignments, findings, doubts);
	const configs = [...readProxyConfigVariable(process, ofBundle, findings), ...meshes];
	const resolver = new Resolver(
		[
			flagLayer(flags, host.cwd),
			environmentLayer(env, host.cwd),
			variablesLayer(process, findings),
			fileLayer(file?.path ?? '', readFile(file, findings, parseOwnFile) ?? new Map()),
			fileLayer(kept?.path ?? '', readFile(kept, findings, parseOwnFile) ?? new Map()),
			variablesLayer(ofBundle, findings),
			meshLayer(configs, findings),
		],
		[process, ofBundle],
		findings,
	);
	const config = buildConfig(resolver, sources, configs, hosts);
	findConflicts(config, resolver);
	findings.throwIfAny();
	return deepFreeze({config, origins: resolver.origins, warnings: findings.warnings});
}

function buildConfig(
	resolver: Resolver,
	{bundle, host, credentialPath}: Sources,
	configs: readonly MeshSource[],
	hosts: ReadonlyMap<string, readonly string[]>,
): Config {
	const stateDir = resolver.take(table.stateDir);
	const runDir = resolver.take(table.runDir);
	resolver.useDirectories({'state-dir': stateDir, 'run-dir': runDir});
	const asked = readWorkload(resolver, host);
	const dns = readDns(resolver, asked.isDnsCaptured, stateDir);
	const controlPlane = readControlPlane(resolver, {
		credentialPath,
		bundle,
		hosts,
		authPolicy: configs.find(({parsed}) => 'controlPlaneAuthPolicy' in parsed.fields)?.parsed.fields[
			'controlPlaneAuthPolicy'
		],
	});
	const {addresses, config: address} = readAddresses(
		resolver,
		{...host, cloudAddress: () => host.keptCloudAddress?.(stateDir)},
		controlPlane,
	);
	// The control plane is told what is done, not what was asked for.
	const registration = readRegistration(resolver, asked, stateDir);
	const group = registration.mode === 'auto' ? asked.group : undefined;
	const workload = {...asked, group, addresses, isDnsCaptured: dns.mode !== 'off'};
	const identity = readIdentity(resolver, controlPlane);
	if (workload.isDnsCaptured !== asked.isDnsCaptured) noteCapture(resolver);
	const relay = readRelay(resolver, workload.isDnsCaptured, stateDir);
	const proxy = readProxy(resolver, host, workload.addresses, runtimeValues(configs));
	const status = readStatus(resolver, workload.addresses);
	const capture = readCapture(resolver, {
		isDnsCaptured: dns.mode === 'capture',
		dnsPort: dns.port,
		proxy,
		status,
		stateDir,
		runDir,
	});
	const hasEntry =
		group !== undefined || registration.mode === 'direct' || Boolean(workload.metadata['WORKLOAD_ENTRY']);
	const health = readHealth(resolver, configs, hasEntry, stateDir);
	const [first] = controlPlane.endpoints;
	const proxyConfig = effectiveProxyConfig(
		configs.map(({parsed}) => parsed.fields),
		{
			proxy,
			status,
			health,
			serviceCluster: workload.serviceCluster,
			discoveryAddress: first ? `${first.host.includes(':') ? `[${first.host}]` : first.host}:${first.port}` : '',
		},
	);
	resolver.note('workload.proxyConfig', configs[0] ? originOf(configs[0], 'defaultConfig') : byDefault);
	return {
		stateDir,
		runDir,
		workload: {...workload, proxyConfig},
		controlPlane,
		identity,
		relay,
		proxy,
		dns,
		status,
		capture,
		health,
		address,
		registration,
		cloud: {
			mode: resolver.take(table.cloud),
			waitMs: resolver.take(table.cloudWait),
			endpoint: resolver.take(table.cloudEndpoint),
		},
		log: {level: resolver.take(table.logLevel), format: resolver.take(table.logFormat)},
		isNotifyEnabled: resolver.take(table.notify),
	};
}

/** Only of files that could be read: what is wrong with the others is told already. */
function reportCuts(
	bundle: BundleSource,
	meshes: readonly MeshSource[],
	entries: ReadonlyMap<string, Assignment> | undefined,
	findings: Findings,
	doubts: 'refuse' | 'warn',
): void {
	if (findings.problems.some(({place}) => place.startsWith(`${bundle.path}/`))) return;
	const [mesh] = meshes;
	const text: BundleText = {
		clusterEnv: bundle.clusterEnv && entries && {...bundle.clusterEnv, entries},
		mesh: bundle.mesh && mesh && {...bundle.mesh, parsed: mesh.parsed},
		hosts: bundle.hosts,
	};
	for (const {place, message, remedy} of findCuts(text)) {
		if (doubts === 'refuse') findings.problem(place, message, remedy);
		else findings.warn(place, `${message}; ${remedy}`);
	}
}

const parseOwnFile = (text: string, findings: FileFindings) => parseOnrampYaml(text, settings, findings);

/** Decodes and parses a file, if there is one and it is text. */
function readFile<T>(
	file: SourceFile | undefined,
	findings: Findings,
	parse: (text: string, findings: FileFindings) => T,
): T | undefined {
	if (!file) return undefined;
	const ofFile = new FileFindings(file.path, findings);
	const text = decodeText(file.bytes, ofFile);
	return text === undefined ? undefined : parse(text, ofFile);
}

function readMeshes(bundle: BundleSource | undefined, findings: Findings): MeshSource[] {
	const parsed = readFile(bundle?.mesh, findings, parseMeshYaml);
	return parsed ? [{parsed, path: bundle!.mesh!.path, kind: 'bundle'}] : [];
}

/** cluster.env over the proxyMetadata from which istioctl made it. */
function readBundleVariables(
	bundle: BundleSource | undefined,
	meshes: readonly MeshSource[],
	assignments: ReadonlyMap<string, Assignment>,
): Variables {
	return new Map([
		...meshes.flatMap(({path, parsed}) => [...bundleVariables(path, parsed.metadata, 'proxyMetadata.')]),
		...bundleVariables(bundle?.clusterEnv?.path ?? 'cluster.env', assignments),
	]);
}

function readProxyConfigVariable(process: Variables, ofBundle: Variables, findings: Findings): MeshSource[] {
	const variable = process.get('PROXY_CONFIG') ?? ofBundle.get('PROXY_CONFIG');
	if (!variable?.value) return [];
	const parsed = parseProxyConfig(variable.value, new FileFindings(variable.place, findings));
	return [{parsed, path: variable.place, kind: variable.origin.kind}];
}

function runtimeValues(configs: readonly MeshSource[]): RuntimeValues | undefined {
	const source = configs.find(({parsed}) => 'runtimeValues' in parsed.fields);
	return (
		source && {
			values: source.parsed.fields['runtimeValues'] as Readonly<Record<string, string>>,
			origin: originOf(source, 'runtimeValues'),
		}
	);
}

/** A misspelt variable would otherwise do nothing, silently. Values are not shown: one may be a token. */
function refuseUnknownVariables(env: Sources['env'], findings: Findings): void {
	const known = settings.map(setting => setting.env);
	for (const name of Object.keys(env).toSorted())
		if (name.startsWith('ONRAMP_') && !known.includes(name))
			findings.problem(
				name,
				`unknown variable${suggest(name, known)}`,
				'mend the name, or unset it; docs/configuration.md lists them all',
			);
}

function deepFreeze<T>(value: T): T {
	if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
		Object.freeze(value);
		for (const each of Object.values(value)) deepFreeze(each);
	}
	return value;
}
