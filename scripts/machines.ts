// Two machines and the control plane between them, as network namespaces of our own: for what shows or measures traffic
// capture. Nothing outside of the namespaces is touched. Needs root.
import {type ChildProcess, execFile, execFileSync, spawn} from 'node:child_process';
import {accessSync, openSync, rmSync} from 'node:fs';
import {chmod, chown, mkdir, readdir, readFile, writeFile} from 'node:fs/promises';
import {dirname, join} from 'node:path';
import {createInterface} from 'node:readline';
import {fetchStatus, type StatusReport, sendCommand} from '../src/status/index.ts';
import {check, retry} from './demo-steps.ts';

/** Agent and Envoy, and the one who calls; no entries in /etc/passwd are needed. */
export const agentUid = '15337';
export const callerUid = '15400';
export const namespace = 'demo';
/** Where it listens, and what resolv.conf names; nobody answers names there. */
export const controlPlane = '198.18.0.1';
export const appPort = 8080;

export const toolPath = (name: string): string | undefined =>
	['/usr/sbin', '/usr/bin', '/sbin', '/bin'].map(directory => `${directory}/${name}`).find(isThere);

function isThere(path: string): boolean {
	try {
		accessSync(path);
		return true;
	} catch {
		return false;
	}
}

/** Why there can be none here, or undefined. */
export function whyNoMachines(): string | undefined {
	if (process.getuid?.() !== 0) return 'needs root';
	const missing = ['ip', 'nft', 'setpriv', 'curl'].filter(name => toolPath(name) === undefined);
	if (missing.length > 0) return `needs ${missing.join(', ')} (scripts/setup, run as root, installs them)`;
	const name = `ort${process.pid.toString(36)}`;
	try {
		execFileSync('ip', ['netns', 'add', name], {stdio: 'pipe'});
		execFileSync('ip', ['netns', 'exec', name, toolPath('nft')!, 'add table ip t'], {stdio: 'pipe'});
		return undefined;
	} catch {
		return 'needs network namespaces with nftables, which this machine does not give';
	} finally {
		removeNamespace(name);
	}
}

export interface Machine {
	readonly name: 'cluster' | 'vm';
	readonly netns: string;
	readonly address: string;
	/** Name of the service that is its application. */
	readonly host: string;
	/** SPIFFE ID. */
	readonly id: string;
	/** What its agent reads and writes. */
	readonly directory: string;
}

export interface Outcome {
	readonly code: number;
	readonly stdout: string;
	readonly stderr: string;
}

export class Machines {
	readonly cluster: Machine;
	readonly vm: Machine;
	readonly #middle: string;
	readonly #envoyPath: string;
	readonly #moreFlags: readonly string[];
	readonly #started: ChildProcess[] = [];
	#control: (...command: readonly unknown[]) => Promise<void> = async () => {};

	/** @param flags - further ones of every agent and command */
	constructor(directory: string, envoyPath: string, flags: readonly string[] = []) {
		const prefix = `or${process.pid.toString(36)}`;
		const machine = (name: Machine['name'], address: string, host: string): Machine => ({
			...{name, address, host, netns: `${prefix}${name[0]}`, directory: join(directory, name)},
			id: `spiffe://cluster.local/ns/${namespace}/sa/${name}-sa`,
		});
		this.cluster = machine('cluster', '198.18.0.10', 'echo.demo.mesh');
		this.vm = machine('vm', '198.18.0.20', 'echo-vm.demo.mesh');
		this.#middle = `${prefix}m`;
		this.#envoyPath = envoyPath;
		this.#moreFlags = flags;
	}

	get all(): readonly [Machine, Machine] {
		return [this.cluster, this.vm];
	}

	/** One wire each to a bridge in the middle. */
	async make(): Promise<void> {
		for (const name of [this.#middle, ...this.all.map(({netns}) => netns)]) await must('ip', ['netns', 'add', name]);
		const inside = (netns: string, ...lines: readonly string[]) =>
			must('ip', ['-n', netns, '-batch', '-'], `${lines.join('\n')}\n`);
		const bridge = ['link add br0 type bridge', `addr add ${controlPlane}/24 dev br0`, 'link set br0 up'];
		await inside(this.#middle, 'link set lo up', ...bridge);
		for (const {netns, name, address} of this.all) {
			// Read in place of the machine's own by what runs in there.
			await mkdir(`/etc/netns/${netns}`, {recursive: true});
			await writeFile(`/etc/netns/${netns}/resolv.conf`, `nameserver ${controlPlane}\n`);
			const wire = `link add ${name} type veth peer name eth0 netns ${netns}`;
			await inside(this.#middle, wire, `link set ${name} master br0 up`);
			await inside(
				netns,
				...['link set lo up', 'link set eth0 addrgenmode none', 'link set eth0 up'],
				...[`addr add ${address}/24 dev eth0`, `route add default via ${controlPlane}`],
			);
		}
	}

	spawn(netns: string, command: readonly string[], stdio: 'pipe' | 'ignore' | number): ChildProcess {
		const input = stdio === 'pipe' ? 'pipe' : 'ignore';
		const child = spawn('ip', ['netns', 'exec', netns, ...command], {stdio: [input, stdio, stdio]});
		this.#started.push(child);
		return child;
	}

	/** Knows a group and a service of each machine. */
	async startControlPlane(): Promise<void> {
		const options = ['--host', controlPlane, '--port', '15012', '--app-port', '0', '--strict'];
		const child = this.spawn(this.#middle, [process.execPath, 'src/sandbox/main.ts', ...options], 'pipe');
		const events: {readonly event: string; readonly error?: string}[] = [];
		createInterface({input: child.stdout!}).on('line', line => events.push(JSON.parse(line)));
		const said = (from: number, ...names: readonly string[]) =>
			retry(async () => {
				const found = events.slice(from).find(({event}) => names.includes(event));
				check(found !== undefined, `the control plane does not say ${names.join(' or ')}`);
				return found!;
			}, 30_000);
		await said(0, 'started');
		this.#control = async (...command) => {
			const from = events.length;
			child.stdin!.write(`${JSON.stringify(command)}\n`);
			const {error} = await said(from, 'done', 'failed');
			check(error === undefined, String(error));
		};
		for (const {name, host} of this.all) {
			const [labels, serviceAccount] = [{app: name}, `${name}-sa`];
			await this.#control('addWorkloadGroup', {name, namespace, serviceAccount, labels});
			const port = {port: 80, targetPort: appPort, protocol: 'http'};
			await this.#control('addService', {host, namespace, ...port, selector: labels});
		}
	}

	startApp({netns, name}: Machine, port = appPort): void {
		this.spawn(netns, [process.execPath, 'src/sandbox/echo-main.ts', `echo on the ${name}`, String(port)], 'ignore');
	}

	/** An application beside the control plane, which no mesh knows. */
	startOutside(port: number): void {
		this.spawn(this.#middle, [process.execPath, 'src/sandbox/echo-main.ts', 'outside', String(port)], 'ignore');
	}

	/** `onramp join` as a user of its own, with the one right that capture needs; until it is ready. */
	async join(machine: Machine): Promise<{readonly agent: ChildProcess; readonly report: StatusReport}> {
		const {name, netns, directory} = machine;
		const bundle = `${directory}-bundle`;
		await mkdir(directory, {recursive: true});
		// So that another user gets there.
		for (const path of [dirname(dirname(directory)), dirname(directory)]) await chmod(path, 0o755);
		await this.#control('writeBundle', bundle, {group: name, namespace, ingressAddress: controlPlane});
		const config = join(directory, 'onramp.yaml');
		await writeFile(config, '');
		const bundled = (await readdir(bundle)).map(file => join(bundle, file));
		for (const path of [directory, config, bundle, ...bundled]) await chown(path, Number(agentUid), Number(agentUid));
		const agent = this.spawn(
			netns,
			[
				...['setpriv', '--reuid', agentUid, '--regid', agentUid, '--clear-groups'],
				...['--inh-caps', '+net_admin', '--ambient-caps', '+net_admin', '--bounding-set', '-all,+net_admin'],
				// That of root may be root's alone.
				...['env', `TMPDIR=${directory}`],
				...[process.execPath, 'dist/onramp.cjs', 'join', bundle, '--install-to', join(directory, 'bundle')],
				...this.#flags(machine),
			],
			openSync(`${directory}.log`, 'w'),
		);
		return {agent, report: await this.untilReady(machine)};
	}

	#flags({name, address, directory}: Machine): readonly string[] {
		return [
			...['--config', join(directory, 'onramp.yaml'), '--name', name, '--address', address],
			...['--envoy', this.#envoyPath, '--proxy-concurrency', '1', '--proxy-termination-drain', '500ms'],
			...['--run-dir', join(directory, 'run'), '--state-dir', join(directory, 'state'), '--notify', 'false'],
			...['--capture', 'true', '--capture-users', agentUid, '--capture-groups', agentUid],
			...this.#moreFlags,
		];
	}

	status({directory}: Machine): Promise<StatusReport> {
		return fetchStatus(join(directory, 'run/control.sock'));
	}

	command({directory}: Machine, name: string): Promise<unknown> {
		return sendCommand(join(directory, 'run/control.sock'), name);
	}

	untilReady(machine: Machine): Promise<StatusReport> {
		return retry(async () => {
			const status = await this.status(machine).catch(() => undefined);
			const log = await readFile(`${machine.directory}.log`, 'utf8').catch(() => '');
			check(status?.ready === true, `the agent is not ready: ${log.slice(-3000)}`);
			return status!;
		}, 60_000);
	}

	/** Somebody at that machine, as root. */
	onramp(machine: Machine, ...command: readonly string[]): Promise<Outcome> {
		const words = [process.execPath, 'dist/onramp.cjs', ...command, '--namespace', namespace, ...this.#flags(machine)];
		return run('ip', ['netns', 'exec', machine.netns, ...words]);
	}

	/** A program as an ordinary user there, with an empty environment. */
	as(uid: string, {netns}: Machine, command: readonly string[]): Promise<Outcome> {
		const user = ['setpriv', '--reuid', uid, '--regid', uid, '--clear-groups'];
		return run('ip', ['netns', 'exec', netns, ...user, 'env', '-i', ...command]);
	}

	/** As the kernel has them, without counters. */
	async rulesOf({netns}: Machine): Promise<string> {
		const rules = await must('ip', ['netns', 'exec', netns, toolPath('nft')!, '-s', 'list', 'ruleset']);
		return rules + (await must('ip', ['-n', netns, 'rule'])) + (await must('ip', ['-n', netns, 'addr', 'show', 'lo']));
	}

	/** At once, so that it also works in a process's last moment. */
	destroy(): void {
		for (const child of this.#started) child.kill('SIGKILL');
		for (const name of [...this.all.map(({netns}) => netns), this.#middle]) {
			removeNamespace(name);
			rmSync(`/etc/netns/${name}`, {recursive: true, force: true});
		}
	}
}

/** What runs in a namespace of ours is what was started there. */
function removeNamespace(name: string): void {
	try {
		const pids = () => execFileSync('ip', ['netns', 'pids', name], {encoding: 'utf8', stdio: 'pipe'});
		for (let left = pids(), tries = 0; left !== '' && tries < 100; left = pids(), tries++) {
			for (const pid of left.split('\n').filter(Boolean)) process.kill(Number(pid), 'SIGKILL');
			Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
		}
		execFileSync('ip', ['netns', 'del', name], {stdio: 'pipe'});
	} catch {
		// It was never made, or has just gone.
	}
}

export function run(program: string, args: readonly string[], input?: string): Promise<Outcome> {
	return new Promise(resolve => {
		const child = execFile(program, [...args], {maxBuffer: 64 * 2 ** 20}, (error, stdout, stderr) =>
			resolve({code: error ? Number(error.code ?? -1) : 0, stdout, stderr}),
		);
		child.stdin!.end(input);
	});
}

async function must(program: string, args: readonly string[], input?: string): Promise<string> {
	const {code, stdout, stderr} = await run(program, args, input);
	check(code === 0, `${program} ${args.join(' ')}: ${stderr.trim()}`);
	return stdout;
}
