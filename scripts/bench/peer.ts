import {type ChildProcess, spawn} from 'node:child_process';
import {closeSync, existsSync, openSync} from 'node:fs';
import {copyFile, mkdir, readFile, writeFile} from 'node:fs/promises';
import {dirname, join} from 'node:path';
import {freePorts} from '../../src/sandbox/local-workload.ts';
import type {Agent} from './agent.ts';
import {killAtEnd, killNow} from './cleanup.ts';
import type {Target} from './http.ts';

export interface PeerOptions {
	/** Istio's pilot-agent. */
	readonly binaryPath: string;
	/** Istio's Envoy bootstrap template. */
	readonly templatePath: string;
	readonly directory: string;
	readonly bundle: string;
	readonly envoyPath: string;
	readonly controlPlanePort: number;
	/** In place of the machine's: it reads /etc/resolv.conf and nothing else, so it gets a mount namespace, which needs root. */
	readonly resolvConfPath?: string | undefined;
	/** RSA 2048 unless given: that is its default. */
	readonly keyType?: 'ecdsa-p256' | undefined;
}

export const peerNode = {name: 'bench-peer', address: '127.0.3.2'};

/** Names under which Istio keeps, and installs, the template. */
const templateNames = ['envoy_bootstrap.json', 'envoy_bootstrap_tmpl.json'];

/** @throws Error when the binary, or the template beside it, is not there */
export function findPeer(
	binaryPath: string,
	templatePath: string | undefined,
): {binaryPath: string; templatePath: string} {
	if (!existsSync(binaryPath)) throw new Error(`--peer ${binaryPath}: no such file`);
	const candidates = templatePath ? [templatePath] : templateNames.map(name => join(dirname(binaryPath), name));
	const found = candidates.find(path => existsSync(path));
	if (!found) {
		throw new Error(
			`pilot-agent needs its Envoy bootstrap template; looked for ${candidates.join(', ')}. ` +
				'Take tools/packaging/common/envoy_bootstrap.json from the Istio source of the same version, and name it with --peer-template',
		);
	}
	return {binaryPath, templatePath: found};
}

/**
 * Lays out a working directory as a VM has it, since pilot-agent takes most paths relative to where it runs: the token
 * in ./var/run/secrets/tokens, certificates in ./etc/certs, the mesh's settings in ./etc/istio/config.
 */
export async function createPeer(options: PeerOptions): Promise<Agent> {
	const {directory, bundle, templatePath} = options;
	const at = (...path: string[]): string => join(directory, ...path);
	const folders = ['etc/certs', 'etc/istio/config', 'etc/istio/proxy', 'var/run/secrets/tokens', 'var/lib/istio/envoy'];
	for (const folder of folders) await mkdir(at(folder), {recursive: true});
	await copyFile(join(bundle, 'root-cert.pem'), at('etc/certs/root-cert.pem'));
	await copyFile(join(bundle, 'istio-token'), at('var/run/secrets/tokens/istio-token'));
	await copyFile(join(bundle, 'mesh.yaml'), at('etc/istio/config/mesh'));
	// Its metrics and readiness listeners take every address otherwise.
	const template = await readFile(templatePath, 'utf8');
	const copy = at('var/lib/istio/envoy/envoy_bootstrap_tmpl.json');
	await writeFile(copy, template.replaceAll('"address": "{{ .wildcard }}"', '"address": "127.0.0.1"'));
	const [status, readiness, metrics, admin, dns] = await freePorts(5);
	const ports = {status: status!, readiness: readiness!, metrics: metrics!, admin: admin!, dns: dns!};
	const env = {
		...parseClusterEnv(await readFile(join(bundle, 'cluster.env'), 'utf8')),
		...renderEnvironment(options, copy, ports),
	};
	return new Peer(options, ports, env);
}

type Ports = Readonly<Record<'status' | 'readiness' | 'metrics' | 'admin' | 'dns', number>>;

function renderEnvironment(options: PeerOptions, templatePath: string, ports: Ports): Record<string, string> {
	// By the name localhost it checks the certificate for the name of the control plane's service, whatever the port.
	const controlPlane = `localhost:${options.controlPlanePort}`;
	return {
		PATH: process.env['PATH'] ?? '',
		PROXY_CONFIG: [
			'controlPlaneAuthPolicy: MUTUAL_TLS',
			`discoveryAddress: ${controlPlane}`,
			`binaryPath: ${options.envoyPath}`,
			`proxyBootstrapTemplatePath: ${templatePath}`,
			`statusPort: ${ports.status}`,
			`proxyAdminPort: ${ports.admin}`,
			'terminationDrainDuration: 0.1s',
			'proxyStatsMatcher:',
			"  inclusionRegexps: ['.*update_time']",
		].join('\n'),
		CA_ADDR: controlPlane,
		PROV_CERT: './etc/certs',
		OUTPUT_CERTS: './etc/certs',
		ENVOY_STATUS_PORT: String(ports.readiness),
		ENVOY_PROMETHEUS_PORT: String(ports.metrics),
		DNS_PROXY_ADDR: `127.0.0.1:${ports.dns}`,
		INSTANCE_IP: peerNode.address,
		POD_NAME: peerNode.name,
		POD_NAMESPACE: 'bench',
		// Otherwise it looks for the metadata server of a cloud, for up to two seconds.
		CLOUD_PLATFORM: 'none',
		...(options.keyType ? {ECC_SIGNATURE_ALGORITHM: 'ECDSA', ECC_CURVE: 'P256'} : {}),
	};
}

/** The sandbox's own, in which every value is in single quotes. */
function parseClusterEnv(text: string): Record<string, string> {
	const pairs = [...text.matchAll(/^(\w+)='(.*)'$/gm)];
	return Object.fromEntries(pairs.map(([, name, value]) => [name!, value!.replaceAll(`'"'"'`, "'")]));
}

/** How long its own stop may take before it is killed: five seconds of drain, and some. */
const stopDeadlineMs = 15_000;

class Peer implements Agent {
	readonly label: string;
	readonly status: Target;
	readonly admin: Target;
	readonly logPath: string;
	readonly dnsPort: number;
	readonly rotate = undefined;
	readonly #options: PeerOptions;
	readonly #env: Record<string, string>;
	readonly #forget: () => void;
	#child: ChildProcess | undefined;
	#exit: Promise<void> = Promise.resolve();
	hasEnded = true;

	constructor(options: PeerOptions, ports: Ports, env: Record<string, string>) {
		this.#options = options;
		this.#env = env;
		this.label = options.keyType ? `peer (${options.keyType})` : 'peer';
		this.status = {host: '127.0.0.1', port: ports.status};
		this.admin = {host: '127.0.0.1', port: ports.admin};
		this.dnsPort = ports.dns;
		this.logPath = join(options.directory, 'agent.log');
		this.#forget = killAtEnd(() => this.#killAll());
	}

	get pid(): number {
		return this.#child!.pid!;
	}

	start(): void {
		const log = openSync(this.logPath, 'a');
		const {binaryPath, resolvConfPath} = this.#options;
		const command = [binaryPath, 'proxy', 'sidecar', '--proxyLogLevel=warning', '--concurrency=1'];
		const mount = 'mount --bind "$0" /etc/resolv.conf && exec "$@"';
		const [file, ...args] = resolvConfPath
			? ['unshare', '--mount', 'sh', '-c', mount, resolvConfPath, ...command]
			: command;
		const child = spawn(file!, args, {
			cwd: this.#options.directory,
			env: this.#env,
			stdio: ['ignore', log, log],
			// A process group of its own, which its Envoy belongs to as well.
			detached: true,
		});
		closeSync(log);
		this.#child = child;
		this.hasEnded = false;
		this.#exit = new Promise(resolve => {
			child.once('exit', () => {
				this.hasEnded = true;
				resolve();
			});
		});
	}

	async stop(): Promise<void> {
		this.#child?.kill('SIGTERM');
		const timer = setTimeout(() => this.#killAll(), stopDeadlineMs);
		await this.#exit;
		clearTimeout(timer);
		this.#killAll();
	}

	/** Its Envoy must go too: a second one could not take the same ports. */
	async crash(): Promise<void> {
		this.#child?.kill('SIGKILL');
		await this.#exit;
		this.#killAll();
	}

	async destroy(): Promise<void> {
		this.#killAll();
		await this.#exit;
		this.#forget();
	}

	/** The whole group, as long as it has anybody in it; its number is not given to others before. */
	#killAll(): void {
		if (this.#child?.pid !== undefined) killNow(-this.#child.pid);
	}
}
