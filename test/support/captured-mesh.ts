// A mesh across network namespaces: the control plane on the far side, and VMs whose agents may capture their traffic.

import type {ChildProcess} from 'node:child_process';
import {chown, mkdir, readdir, readFile} from 'node:fs/promises';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {fileURLToPath} from 'node:url';
import {fetchStatus, type StatusReport, sendCommand} from '../../src/status/index.ts';
import {buildAgent} from './agent.ts';
import {ensureEnvoy} from './envoy.ts';
import {until} from './mesh.ts';
import {address, execute, meshUid, type Namespace, type Output, type Peer, type World} from './netns.ts';

/** What the applications answer with, of `serveHttp` in netns-peer.ts. */
export interface Echo {
	readonly app?: string;
	readonly caller?: string;
	readonly peer?: string;
	readonly error?: string;
}

export const meshNamespace = 'mesh';
export const idOf = (group: string): string => `spiffe://cluster.local/ns/${meshNamespace}/sa/${group}-sa`;
export const hostOf = (group: string): string => `${group}.${meshNamespace}.svc.cluster.local`;

/** Commands of src/sandbox/main.ts. */
export type Control = (...command: readonly unknown[]) => Promise<unknown>;

/** The sandbox in the far namespace, with a group and a service each for these; commands go in as lines. */
export async function startControlPlane(
	{far}: World,
	groups: Readonly<Record<string, {readonly vip: string}>>,
	/** How long an entry outlives its stream; istiod's own is 10 s. */
	graceSeconds = 1,
): Promise<Control> {
	const script = fileURLToPath(new URL('../../src/sandbox/main.ts', import.meta.url));
	const child = far.spawn(
		[process.execPath, script, '--host', address.far.ip, '--port', '15012', '--app-port', '0', '--strict'].concat(
			...['--grace-seconds', String(graceSeconds)],
		),
	);
	const events: {readonly event: string; readonly result?: unknown; readonly error?: string}[] = [];
	createInterface({input: child.stdout!}).on('line', line => events.push(JSON.parse(line)));
	await until('the control plane', () => events.some(({event}) => event === 'started'), 60_000);
	const control: Control = async (...command) => {
		const before = events.length;
		child.stdin!.write(`${JSON.stringify(command)}\n`);
		const answer = await until(`an answer to ${String(command[0])}`, () =>
			events.slice(before).find(({event}) => event === 'done' || event === 'failed'),
		);
		if (answer.event === 'failed') throw new Error(answer.error);
		return answer.result;
	};
	for (const [name, {vip}] of Object.entries(groups)) {
		const labels = {app: name};
		await control('addWorkloadGroup', {name, namespace: meshNamespace, serviceAccount: `${name}-sa`, labels});
		await control('addService', {
			...{host: hostOf(name), namespace: meshNamespace, port: 80, targetPort: 8080, protocol: 'http'},
			...{address: vip, selector: labels},
		});
	}
	return control;
}

export interface VmOptions {
	readonly group: string;
	readonly vm: Namespace;
	/** Of the VM; found by the agent unless given. */
	readonly at?: string;
	readonly isDnsCaptured?: boolean;
	readonly flags?: readonly string[];
}

/** A VM in the mesh; agent and Envoy run as a user of their own. */
export class CapturedVm {
	readonly options: VmOptions;
	readonly directory: string;
	readonly app: Peer;
	readonly #flags: readonly string[];
	readonly #agentPath: string;
	#child: ChildProcess | undefined;
	#exit: Promise<number | null> = Promise.resolve(null);
	log = '';

	private constructor(options: VmOptions, directory: string, app: Peer, flags: readonly string[], agentPath: string) {
		this.options = options;
		this.directory = directory;
		this.app = app;
		this.#flags = flags;
		this.#agentPath = agentPath;
	}

	static async create(world: World, control: Control, options: VmOptions): Promise<CapturedVm> {
		const {group, vm, at, isDnsCaptured = true, flags = []} = options;
		const [agentPath, envoyPath] = [await buildAgent(), await ensureEnvoy()];
		const directory = join(world.directory, group);
		const bundle = join(directory, 'bundle');
		await mkdir(bundle, {recursive: true});
		await control('writeBundle', bundle, {
			...{group, namespace: meshNamespace, ingressAddress: address.far.ip, isDnsCaptured},
		});
		for (const path of [directory, bundle, ...(await readdir(bundle)).map(name => join(bundle, name))])
			await chown(path, meshUid, meshUid);
		const app = await vm.peer();
		await app.send('serveHttp', {port: 8080, name: group});
		const all = [
			...['--config', join(world.directory, 'onramp.yaml'), '--bundle', bundle, '--name', group],
			...(at === undefined ? [] : ['--address', at]),
			...['--run-dir', join(directory, 'run'), '--state-dir', join(directory, 'state'), '--envoy', envoyPath],
			...['--notify', 'false', '--proxy-concurrency', '1', '--proxy-termination-drain', '200ms'],
			...['--capture-users', String(meshUid), '--capture-groups', String(meshUid), ...flags],
		];
		return new CapturedVm(options, directory, app, all, agentPath);
	}

	get socket(): string {
		return join(this.directory, 'run', 'control.sock');
	}

	get pid(): number {
		return this.#child!.pid!;
	}

	/** Exit code once the agent has ended; null after a signal. */
	get exit(): Promise<number | null> {
		return this.#exit;
	}

	/** The agent, with `isAdmin` as one that may change rules, and with nothing else that root may. */
	start({isAdmin = true, flags = []}: {readonly isAdmin?: boolean; readonly flags?: readonly string[]} = {}): void {
		this.#child = this.#spawn(isAdmin, flags);
		this.#exit = exitOf(this.#child);
	}

	/** `onramp join --capture` as somebody types it; keeps the bundle below `directory/kept`. */
	join(options: {readonly uid?: number; readonly flags?: readonly string[]} = {}): {
		readonly child: ChildProcess;
		readonly exit: Promise<number | null>;
		said(): string;
	} {
		const {uid, flags = []} = options;
		const own = this.#flags.filter((word, i) => word !== '--bundle' && this.#flags[i - 1] !== '--bundle');
		const words = [
			'join',
			join(this.directory, 'bundle'),
			'--install-to',
			join(this.directory, 'kept'),
			...own,
			...flags,
		];
		let said = '';
		const child = this.options.vm.spawn([process.execPath, this.#agentPath, ...words], {
			...(uid === undefined ? {} : {uid}),
			stderr: text => {
				said += text;
			},
		});
		child.stdout!.on('data', (chunk: Buffer) => {
			said += chunk.toString();
		});
		return {child, exit: exitOf(child), said: () => said};
	}

	/** A second agent with the same directories, to its end. */
	startAnother(): Promise<number | null> {
		return exitOf(this.#spawn(true));
	}

	#spawn(isNetworkAdmin: boolean, flags: readonly string[] = []): ChildProcess {
		return this.options.vm.spawn([process.execPath, this.#agentPath, 'run', ...this.#flags, ...flags], {
			uid: meshUid,
			stdio: 'ignore',
			isNetworkAdmin,
			stderr: text => {
				this.log += text;
			},
		});
	}

	signal(signal: NodeJS.Signals): void {
		this.#child?.kill(signal);
	}

	async stop(): Promise<number | null> {
		this.signal('SIGTERM');
		return this.#exit;
	}

	/** Root's hand, with the agent's settings. */
	onramp(...args: readonly string[]): Promise<Output> {
		const {vm} = this.options;
		return execute('ip', ['netns', 'exec', vm.name, process.execPath, this.#agentPath, ...args, ...this.#flags]);
	}

	status(): Promise<StatusReport> {
		return fetchStatus(this.socket);
	}

	retry(): Promise<unknown> {
		return sendCommand(this.socket, 'retry');
	}

	async until(what: string, matches: (report: StatusReport) => boolean): Promise<StatusReport> {
		let last: StatusReport | undefined;
		return until(
			`agent ${this.options.group} ${what}`,
			async () => {
				last = await this.status();
				return matches(last) ? last : undefined;
			},
			60_000,
		).catch((error: unknown) => {
			throw new Error(`${String(error)}\n${JSON.stringify(last?.gates)}\n${this.log.slice(-4000)}`, {cause: error});
		});
	}

	untilReady(): Promise<StatusReport> {
		return this.until('is ready', ({ready}) => ready);
	}

	get(url: string, withinMs = 10_000): Promise<Echo> {
		return this.app.send<Echo>('get', {url, withinMs});
	}

	async untilAnswers(url: string): Promise<Echo> {
		return until(
			`an answer of ${url}`,
			async () => {
				const seen = await this.get(url);
				return seen.app ? seen : undefined;
			},
			60_000,
		);
	}
}

const exitOf = (child: ChildProcess): Promise<number | null> => new Promise(resolve => child.once('exit', resolve));

/** Effective capabilities of a process, as the kernel shows them. */
export async function capabilitiesOf(pid: number): Promise<string> {
	return /^CapEff:\s*(\w+)/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))![1]!;
}
