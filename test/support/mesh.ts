// A mesh on one machine: the sandbox as control plane, workloads with an agent and an Envoy each, and applications.
import {readdirSync, readFileSync} from 'node:fs';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {connect as connectTls} from 'node:tls';
import type {ExecutionContext} from 'ava';
import {type EchoApp, startEchoApp} from '../../src/sandbox/echo-app.ts';
import {type Sandbox, type SandboxOptions, startSandbox} from '../../src/sandbox/index.ts';
import {freePorts, LocalWorkload} from '../../src/sandbox/local-workload.ts';
import type {StatusReport} from '../../src/status/index.ts';
import {buildAgent} from './agent.ts';
import {ensureEnvoy} from './envoy.ts';
import {ask} from './load.ts';

export const namespace = 'mesh';

/** Runs at full length, which takes many minutes. */
export const isLong = process.env['ONRAMP_LONG_TESTS'] === '1';

/** A stop is quick, and no certificate is renewed but by the test. */
const usualFlags = ['--proxy-termination-drain', '500ms', '--identity-trial-delay', '1h'] as const;

export interface MeshOptions {
	/** Workloads by name → WorkloadGroup. `{cluster: 'cluster', vm: 'vm'}` unless given. */
	readonly workloads?: Readonly<Record<string, string>>;
	/** Flags of every agent. */
	readonly flags?: readonly string[];
	/** Further flags by workload, made once the mesh's paths are known. */
	readonly flagsOf?: (name: string, mesh: {readonly sandbox: Sandbox; readonly directory: string}) => readonly string[];
	readonly sandbox?: Omit<SandboxOptions, 'ports'>;
	readonly command?: 'run' | 'join';
	/** What is started in the agent's place; `directory` is the mesh's. */
	readonly wrapAgent?: (agentPath: string, directory: string) => Promise<string>;
	/** Of WorkloadGroups, by name: the probe that istioctl puts into the bundle. */
	readonly probes?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
}

export type Kind = 'http' | 'tcp';

export interface Mesh {
	readonly sandbox: Sandbox;
	readonly directory: string;
	workload(name: string): LocalWorkload;
	/** Port on 127.0.0.1 where the Envoy of `from` takes requests for the applications of group `to`. */
	port(from: string, to: string, kind?: Kind): number;
	/** Where the Envoy of the workload takes connections from the mesh. */
	inbound(name: string, kind?: Kind): {readonly address: string; readonly port: number};
	/** SPIFFE ID of a group. */
	idOf(group: string): string;
}

interface Group {
	readonly name: string;
	readonly apps: Readonly<Record<Kind, EchoApp>>;
}

/**
 * Starts everything and returns when all agents are ready and every pair of groups can talk. When the test ends, all
 * is stopped, and the test fails if a process is left.
 */
export async function startMesh(t: ExecutionContext, options: MeshOptions = {}): Promise<Mesh> {
	const {workloads: groupOf = {cluster: 'cluster', vm: 'vm'}, flags = [], flagsOf = () => []} = options;
	const [envoyPath, builtPath] = await Promise.all([ensureEnvoy(), buildAgent()]);
	const directory = await mkdtemp(join(tmpdir(), 'onramp-mesh-'));
	const agentPath = (await options.wrapAgent?.(builtPath, directory)) ?? builtPath;
	const started: LocalWorkload[] = [];
	t.teardown(async () => {
		for (const workload of started) await workload.destroy();
		const left = await killLeftovers(directory);
		if (t.passed) await rm(directory, {recursive: true, force: true});
		else t.log(`logs are kept in ${directory}`);
		if (left.length > 0) throw new Error(`processes left behind: ${left.join('; ')}`);
	});

	const names = Object.keys(groupOf);
	const sandbox = await startSandbox({
		mtls: 'strict',
		...options.sandbox,
		ports: Object.fromEntries(names.map(name => [name, {interception: 'none' as const}])),
	});
	t.teardown(() => sandbox.stop());

	const groups = new Map<string, Group>();
	const bound = new Map<string, number>();
	for (const name of new Set(Object.values(groupOf))) {
		const apps = {http: await startEchoApp(name), tcp: await startEchoApp(name)};
		t.teardown(() => Promise.all([apps.http.stop(), apps.tcp.stop()]));
		groups.set(name, {name, apps});
		const ports = {http: apps.http.port, tcp: apps.tcp.port};
		const probe = options.probes?.[name];
		const labels = {app: name};
		sandbox.addWorkloadGroup({name, namespace, serviceAccount: `${name}-sa`, labels, ports, ...(probe && {probe})});
		for (const kind of ['http', 'tcp'] as const) {
			const callers = names.filter(caller => groupOf[caller] !== name);
			const bindPorts = await freePorts(callers.length);
			const bindPort = Object.fromEntries(callers.map((caller, i) => [caller, bindPorts[i]!]));
			for (const [caller, port] of Object.entries(bindPort)) bound.set(`${caller} ${name} ${kind}`, port);
			sandbox.addService({
				host: `${kind}-${name}.${namespace}.svc.cluster.local`,
				namespace,
				port: kind === 'http' ? 80 : 9000,
				targetPort: apps[kind].port,
				protocol: kind,
				selector: {app: name},
				bindPort,
			});
		}
	}

	const workloads = new Map<string, LocalWorkload>();
	for (const [i, name] of names.entries()) {
		const workload = await LocalWorkload.create({
			name,
			directory: join(directory, name),
			bundle: await sandbox.writeBundle(join(directory, `${name}-bundle`), {group: groupOf[name]!, namespace}),
			address: `127.0.1.${10 + i}`,
			envoyPath,
			agentPath,
			command: options.command ?? 'run',
			flags: [...usualFlags, ...flags, ...flagsOf(name, {sandbox, directory})],
		});
		started.push(workload);
		workloads.set(name, workload);
		workload.start();
	}
	await Promise.all(started.map(workload => workload.untilReady()));

	const workload = (name: string) => workloads.get(name)!;
	const mesh: Mesh = {
		sandbox,
		directory,
		workload,
		port: (from, to, kind = 'http') => bound.get(`${from} ${to} ${kind}`)!,
		inbound: (name, kind = 'http') => ({
			address: workload(name).options.address,
			port: groups.get(groupOf[name]!)!.apps[kind].port,
		}),
		idOf: group => `spiffe://cluster.local/ns/${namespace}/sa/${group}-sa`,
	};
	// Endpoints come with the push that follows the last registration.
	for (const key of bound.keys()) {
		const [from, to, kind] = key.split(' ') as [string, string, Kind];
		await until(`traffic from ${from} to ${to} over ${kind}`, () =>
			ask({port: mesh.port(from, to, kind)}).then(() => true),
		);
	}
	return mesh;
}

/** Parts of `onramp status --json` as far as the tests look at them. */
export interface Parts {
	readonly identity: {
		readonly state: string;
		readonly spiffeId: string;
		readonly serial: string;
		readonly notAfter: string;
		readonly origin: string;
		readonly generation: number;
		readonly rootCount: number;
		readonly tokenlessRenewal: string;
		readonly lastError?: {readonly code: string};
	};
	readonly relay: {
		readonly upstream: {
			readonly state: string;
			readonly endpoint?: string;
			readonly lastError?: {readonly code: string};
		};
		readonly rejections: readonly unknown[];
		readonly removals: readonly {readonly name: string; readonly lost: string}[];
		readonly snapshot: {readonly savedAt?: string; readonly isBehind: boolean; readonly problem?: string};
		readonly servingSaved?: string;
		readonly resources: Readonly<Record<string, number>>;
	};
	readonly proxy: {
		readonly state: string;
		readonly pid: number;
		readonly adopted: boolean;
		readonly restarts: number;
		readonly version: string;
		readonly retiring?: number;
	};
	readonly registration: {
		readonly state: string;
		readonly summary: string;
		readonly proof?: string;
		readonly entry: string;
	};
	readonly health: {readonly state: string; readonly reason?: string};
}

export const partsOf = ({parts}: StatusReport): Parts => parts as unknown as Parts;

export const gateOf = ({gates}: StatusReport, name: string) => gates.find(gate => gate.name === name)!;

/** Connected, and registered by that very stream. */
export const isConnected = (report: StatusReport): boolean => partsOf(report).relay.upstream.state === 'connected';

/** The configuration is on disk, all of it. */
export const isSaved = (report: StatusReport): boolean => {
	const {savedAt, isBehind} = partsOf(report).relay.snapshot;
	return savedAt !== undefined && !isBehind;
};

/** Looks until something is there; what fails meanwhile is told when the time is over. */
export async function until<T>(what: string, look: () => T | Promise<T>, deadlineMs = 60_000): Promise<NonNullable<T>> {
	const deadline = performance.now() + deadlineMs;
	for (;;) {
		let reason: unknown;
		try {
			const seen = await look();
			if (seen) return seen;
		} catch (error) {
			reason = error;
		}
		if (performance.now() > deadline) throw new Error(`waited ${deadlineMs} ms in vain for ${what}`, {cause: reason});
		await new Promise(resolve => setTimeout(resolve, 20));
	}
}

/** Serial number of the certificate that is shown to a stranger who connects. */
export function fetchServedSerial({address, port}: {readonly address: string; readonly port: number}): Promise<string> {
	return new Promise((resolve, reject) => {
		const socket = connectTls({host: address, port, rejectUnauthorized: false, ALPNProtocols: ['istio']});
		socket.setTimeout(5000, () => socket.destroy(new Error('no handshake within 5 s')));
		socket.once('secureConnect', () => {
			const certificate = socket.getPeerX509Certificate();
			socket.destroy();
			if (certificate) resolve(certificate.serialNumber);
			else reject(new Error('no certificate was shown'));
		});
		socket.on('error', reject);
	});
}

/** Collects the certificates that are seen on the wire, looking several times a second. */
export function watchServedSerials(at: {readonly address: string; readonly port: number}) {
	const serials = new Set<string>();
	let isStopped = false;
	const finished = (async () => {
		while (!isStopped) {
			serials.add(await fetchServedSerial(at));
			await new Promise(resolve => setTimeout(resolve, 100));
		}
	})();
	finished.catch(() => {}); // told by stop
	return {
		serials,
		stop: async () => {
			isStopped = true;
			await finished;
			return [...serials];
		},
	};
}

/** Start time in clock ticks since boot: with the pid, the identity of a process. */
export function startTimeOf(pid: number): string {
	// Field 22 of stat, after the parenthesised name.
	return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ')[19]!;
}

/** Ends what still runs out of the directory after a moment's grace, and tells what it was. */
async function killLeftovers(directory: string): Promise<string[]> {
	const deadline = performance.now() + 10_000;
	let left = findProcesses(directory);
	while (left.length > 0 && performance.now() < deadline) {
		await new Promise(resolve => setTimeout(resolve, 20));
		left = findProcesses(directory);
	}
	for (const {pid} of left) process.kill(pid, 'SIGKILL');
	return left.map(({pid, commandLine}) => `${pid} ${commandLine.slice(0, 200)}`);
}

export function findProcesses(text: string): {pid: number; commandLine: string}[] {
	return readdirSync('/proc')
		.filter(entry => /^\d+$/.test(entry) && Number(entry) !== process.pid)
		.flatMap(entry => {
			try {
				const commandLine = readFileSync(`/proc/${entry}/cmdline`, 'utf8').replaceAll('\0', ' ');
				return commandLine.includes(text) ? [{pid: Number(entry), commandLine}] : [];
			} catch {
				return []; // It ended while we looked.
			}
		});
}
