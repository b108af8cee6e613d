// Two machines and a control plane, each process with moved clocks: the VM has clocks of its own, all else shares some.
import {chmod, mkdir, mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {type EchoApp, startEchoApp} from '../../src/sandbox/echo-app.ts';
import {freePorts} from '../../src/sandbox/local-workload.ts';
import {buildAgent} from '../support/agent.ts';
import {ensureEnvoy} from '../support/envoy.ts';
import {type Load, type LoadResult, startLoad} from '../support/load.ts';
import {findProcesses, until} from '../support/mesh.ts';
import {ControlPlane} from './control-plane.ts';
import type {Ledger} from './ledger.ts';
import {Machine} from './machine.ts';
import {enterOwnMounts, mountSmallDisk} from './own-mounts.ts';
import {buildClockShift, ShiftedClock} from './shifted-clock.ts';

const namespace = 'mesh';
const hourMs = 3_600_000;
/** istiod ends streams after half an hour; fewer ends let a long time pass sooner. */
const maxConnectionAgeMs = 4 * hourMs;
const tokenLifetimeMs = hourMs;
const perSecond = 12;
const flags = ['--proxy-termination-drain', '500ms', '--proxy-log-max', '1MiB', '--relay-proxy-config', 'true'];
/** Of what the VM may write. */
const diskSize = '6m';

const kinds = ['http', 'tcp'] as const;

export interface World {
	readonly directory: string;
	readonly controlPlane: ControlPlane;
	readonly vm: Machine;
	readonly cluster: Machine;
	/** Requests go out both ways from now on. */
	startLoads(): void;
	stopLoads(): Promise<readonly LoadResult[]>;
	/** Where a request goes out, one for each kind and direction. */
	readonly ports: readonly number[];
	/** The VM's state is on a disk small enough to be filled. */
	readonly hasSmallDisk: boolean;
	/** A token as an administrator brings it. */
	bringToken(machine: Machine): Promise<void>;
	/** Ends all there is. @returns processes that should not have been there any more */
	stop(isKept: boolean): Promise<readonly string[]>;
}

export async function startWorld(compiler: string, ledger: Ledger): Promise<World> {
	const [envoyPath, agentPath] = await Promise.all([ensureEnvoy(), buildAgent()]);
	const hasSmallDisk = enterOwnMounts();
	const directory = await mkdtemp(join(tmpdir(), 'onramp-time-'));
	const library = buildClockShift(compiler, directory);
	const clocks = {
		cluster: new ShiftedClock(library, join(directory, 'cluster-clock')),
		vm: new ShiftedClock(library, join(directory, 'vm-clock')),
	};
	const apps: EchoApp[] = [];
	const groups = [];
	const services = [];
	const ports: Record<string, number> = {};
	for (const [name, caller] of [
		['vm', 'cluster'],
		['cluster', 'vm'],
	] as const) {
		const targets: Record<string, number> = {};
		for (const kind of kinds) {
			const app = await startEchoApp(name);
			apps.push(app);
			targets[kind] = app.port;
			const [port] = await freePorts(1);
			ports[`${caller} → ${name}, ${kind}`] = port!;
			services.push({
				host: `${kind}-${name}.${namespace}.svc.cluster.local`,
				namespace,
				port: kind === 'http' ? 80 : 9000,
				targetPort: app.port,
				protocol: kind,
				selector: {app: name},
				bindPort: {[caller]: port!},
			});
		}
		groups.push({name, namespace, serviceAccount: `${name}-sa`, labels: {app: name}, ports: targets});
	}
	const options = {
		mtls: 'strict' as const,
		isMultiRoot: true,
		maxConnectionAgeMs,
		ports: {vm: {interception: 'none' as const}, cluster: {interception: 'none' as const}},
	};
	const controlPlane = await ControlPlane.start({options, groups, services}, clocks.cluster.env);

	const writeBundle = (name: string) =>
		controlPlane.tell('writeBundle', join(directory, `${name}-bundle`), {group: name, namespace, tokenLifetimeMs});
	const startMachine = async (name: 'vm' | 'cluster', address: string): Promise<Machine> => {
		const clock = clocks[name];
		const stateDir = join(directory, name, 'state');
		await mkdir(stateDir, {recursive: true, mode: 0o700});
		if (name === 'vm' && hasSmallDisk) mountSmallDisk(stateDir, diskSize);
		const machine = await Machine.create(clock, {
			name,
			directory: join(directory, name),
			bundle: (await writeBundle(name)) as string,
			address,
			envoyPath: await wrapEnvoy(join(directory, `${name}-envoy`), envoyPath, clock),
			agentPath,
			flags: [...flags],
			env: clock.env,
		});
		machine.start();
		return machine;
	};
	const vm = await startMachine('vm', '127.0.1.10');
	const cluster = await startMachine('cluster', '127.0.1.11');
	await Promise.all([vm, cluster].map(({workload}) => workload.untilReady()));

	const start = (load: string, connections: 'new' | 'kept' = 'new') =>
		startLoad({port: ports[load]!, perSecond, connections, onFailure: seen => ledger.note({load, ...seen})});
	let loads: readonly Load[] = [];
	const stopLoads = () => Promise.all(loads.map(load => load.stop()));

	return {
		directory,
		controlPlane,
		vm,
		cluster,
		startLoads: () => {
			loads = [...Object.keys(ports).map(name => start(name)), start('cluster → vm, http', 'kept')];
		},
		stopLoads,
		ports: Object.values(ports),
		hasSmallDisk,
		bringToken: async ({name, workload}) => {
			const request = {namespace, serviceAccount: `${name}-sa`, lifetimeMs: tokenLifetimeMs};
			const token = (await controlPlane.tell('issueToken', request)) as string;
			await writeFile(join(workload.options.bundle, 'istio-token'), token);
		},
		stop: async isKept => {
			await stopLoads();
			await Promise.all([vm.destroy(), cluster.destroy()]);
			await controlPlane.stop();
			await Promise.all(apps.map(app => app.stop()));
			for (const clock of Object.values(clocks)) clock.close();
			// Killed, and not gone yet.
			await until('all to be gone', () => findProcesses(directory).length === 0, 20_000).catch(() => {});
			const left = findProcesses(directory);
			for (const {pid} of left) process.kill(pid, 'SIGKILL');
			if (!isKept) await rm(directory, {recursive: true, force: true});
			return left.map(({pid, commandLine}) => `${pid} ${commandLine.slice(0, 200)}`);
		},
	};
}

/** The agent gives Envoy an empty environment; what moves its clock is put into it by a script in between. */
async function wrapEnvoy(path: string, envoyPath: string, clock: ShiftedClock): Promise<string> {
	const assignments = Object.entries(clock.wallEnv).map(([name, value]) => `${name}='${value}'`);
	await writeFile(path, `#!/bin/sh\nexec env ${assignments.join(' ')} '${envoyPath}' "$@"\n`);
	await chmod(path, 0o755);
	return path;
}
