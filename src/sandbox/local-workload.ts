import {type ChildProcess, spawn} from 'node:child_process';
import {randomInt} from 'node:crypto';
import {once} from 'node:events';
import {openSync, readFileSync} from 'node:fs';
import {mkdir, writeFile} from 'node:fs/promises';
import {createServer, type ListenOptions, type Server} from 'node:net';
import {join} from 'node:path';
import {loadRecord} from '../proxy/record.ts';
import {fetchStatus, type StatusReport, sendCommand} from '../status/index.ts';

/**
 * Below the range the kernel takes ports from for everyone who does not care which (32768 to 60999 unless set), and above
 * those of a mesh (15000 to 15099): settings that are left alone have them, and the same port twice is refused.
 */
const portRange = {from: 16_384, to: 32_767};
/** Abstract sockets, held for as long as this process lives. */
const claims: Server[] = [];

/**
 * Free TCP ports of 127.0.0.1, all different and never the same twice, nor the same as those of another process that
 * asks here. They are not the kernel's to give away meanwhile.
 */
export async function freePorts(count: number): Promise<number[]> {
	const ports: number[] = [];
	while (ports.length < count) {
		const port = randomInt(portRange.from, portRange.to + 1);
		// Of a network namespace, as ports are, and let go by the kernel when the process ends.
		const claim = await listen({path: `\0onramp-port-${port}`});
		if (!claim) continue;
		claims.push(claim.unref());
		const trial = await listen({port, host: '127.0.0.1'});
		if (!trial) continue;
		trial.close();
		ports.push(port);
	}
	return ports;
}

/** Undefined when it is taken. */
async function listen(where: ListenOptions): Promise<Server | undefined> {
	const server = createServer().listen(where);
	try {
		await once(server, 'listening');
		return server;
	} catch {
		return undefined;
	}
}

export interface LocalWorkloadOptions {
	readonly name: string;
	/** Everything the workload writes is below this. */
	readonly directory: string;
	/** As `istioctl x workload entry configure` writes it. */
	readonly bundle: string;
	/** The workload's address, one of 127.0.0.0/8. */
	readonly address: string;
	readonly envoyPath: string;
	/** The agent's own code: `dist/onramp.cjs`. */
	readonly agentPath: string;
	/** `run` (the default), or `join`, which takes the bundle to its place first. */
	readonly command?: 'run' | 'join';
	/** Further flags. */
	readonly flags?: readonly string[];
	readonly env?: Readonly<Record<string, string>>;
}

/** One agent with its Envoy, as separate processes of this machine, with ports and paths of their own. */
export class LocalWorkload {
	readonly options: LocalWorkloadOptions;
	readonly ports: {readonly status: number; readonly readiness: number; readonly metrics: number; readonly dns: number};
	readonly logPath: string;
	#child: ChildProcess | undefined;
	#exit: Promise<number | null> | undefined;

	private constructor(options: LocalWorkloadOptions, ports: readonly number[]) {
		this.options = options;
		this.ports = {status: ports[0]!, readiness: ports[1]!, metrics: ports[2]!, dns: ports[3]!};
		this.logPath = join(options.directory, 'agent.log');
	}

	static async create(options: LocalWorkloadOptions): Promise<LocalWorkload> {
		await mkdir(options.directory, {recursive: true});
		// Its own, so that a configuration of this machine does not get in.
		await writeFile(join(options.directory, 'onramp.yaml'), '', {flag: 'a'});
		// Nor does a question leave it.
		await writeFile(join(options.directory, 'resolv.conf'), 'nameserver 127.0.0.1\n');
		return new LocalWorkload(options, await freePorts(4));
	}

	get runDir(): string {
		return join(this.options.directory, 'run');
	}

	get stateDir(): string {
		return join(this.options.directory, 'state');
	}

	get controlSocketPath(): string {
		return join(this.runDir, 'control.sock');
	}

	get pid(): number | undefined {
		return this.#child?.pid;
	}

	/** Exit code once the agent has ended; null after a signal. */
	get exit(): Promise<number | null> | undefined {
		return this.#exit;
	}

	get flags(): readonly string[] {
		const {name, address, envoyPath, bundle, flags = [], command} = this.options;
		return [
			...(command === 'join' ? [bundle, '--install-to', join(this.options.directory, 'bundle')] : ['--bundle', bundle]),
			...['--config', join(this.options.directory, 'onramp.yaml')],
			...['--name', name, '--address', address, '--envoy', envoyPath],
			...['--state-dir', this.stateDir, '--run-dir', this.runDir],
			...['--status-address', '127.0.0.1', '--status-port', String(this.ports.status)],
			...['--proxy-listen-address', '127.0.0.1', '--proxy-readiness-port', String(this.ports.readiness)],
			...['--proxy-metrics-port', String(this.ports.metrics), '--proxy-concurrency', '1', '--notify', 'false'],
			...['--dns-addresses', '127.0.0.1', '--dns-port', String(this.ports.dns)],
			...['--dns-resolv-conf', join(this.options.directory, 'resolv.conf'), '--workload-cloud', 'off'],
			...flags,
		];
	}

	start(extraFlags: readonly string[] = []): void {
		const {agentPath, command = 'run', env = {}} = this.options;
		const log = openSync(this.logPath, 'a');
		this.#child = spawn(process.execPath, [agentPath, command, ...this.flags, ...extraFlags], {
			stdio: ['ignore', log, log],
			// Nothing of the caller's environment may configure the agent.
			env: {PATH: process.env['PATH'] ?? '', ...env},
		});
		const child = this.#child;
		this.#exit = new Promise(resolve => child.once('exit', code => resolve(code)));
	}

	status(): Promise<StatusReport> {
		return fetchStatus(this.controlSocketPath);
	}

	command(name: string, input?: unknown): Promise<unknown> {
		return sendCommand(this.controlSocketPath, name, input);
	}

	/** @throws Error with the end of the agent's log when it is not ready in time, or has ended */
	async untilReady(deadlineMs = 30_000): Promise<StatusReport> {
		return this.until('ready', report => report.ready, deadlineMs);
	}

	/** Waits for the status to be as described. */
	async until(what: string, matches: (report: StatusReport) => boolean, deadlineMs = 30_000): Promise<StatusReport> {
		const deadline = performance.now() + deadlineMs;
		let ended = false;
		void this.#exit?.then(() => {
			ended = true;
		});
		for (;;) {
			const report = await this.status().catch(() => undefined);
			if (report && matches(report)) return report;
			if (ended || performance.now() > deadline) {
				const why = ended ? 'the agent has ended' : `not within ${deadlineMs / 1000} s`;
				throw new Error(
					`${this.options.name} ${what}: ${why}\n${JSON.stringify(report?.gates)}\n${this.log().slice(-4000)}`,
				);
			}
			await new Promise(resolve => setTimeout(resolve, 10));
		}
	}

	log(): string {
		return readFileSync(this.logPath, 'utf8');
	}

	signal(signal: NodeJS.Signals): void {
		this.#child?.kill(signal);
	}

	/** Ends whatever is left of it, an Envoy that has outlived its agent included. */
	async destroy(): Promise<void> {
		this.#child?.kill('SIGKILL');
		await this.#exit;
		const pid = this.envoyPid();
		if (pid === undefined) return;
		try {
			process.kill(pid, 'SIGKILL');
		} catch {
			// Gone already.
		}
	}

	/** The Envoy on record, if that process still is one. */
	envoyPid(): number | undefined {
		try {
			const pid = loadRecord(join(this.runDir, 'envoy', 'record.json'))?.process?.pid;
			if (pid === undefined) return undefined;
			return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(this.runDir) ? pid : undefined;
		} catch {
			return undefined;
		}
	}

	/** Ends the agent in order, and with it its Envoy; kills it after the deadline. */
	async stop(deadlineMs = 20_000): Promise<number | null> {
		if (!this.#child) return null;
		this.#child.kill('SIGTERM');
		const timer = setTimeout(() => this.#child?.kill('SIGKILL'), deadlineMs);
		const code = await this.#exit!;
		clearTimeout(timer);
		return code;
	}
}
