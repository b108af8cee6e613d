import {readdirSync, readFileSync, rmSync, statSync} from 'node:fs';
import {join} from 'node:path';
import {systemCode} from '../../src/errors.ts';
import {LocalWorkload, type LocalWorkloadOptions} from '../../src/sandbox/local-workload.ts';
import {type Seen, seeStatus} from './seen.ts';
import type {ShiftedClock} from './shifted-clock.ts';

/** As a service manager does it. */
const restartMs = 100;

/** What a machine uses of memory and disk. */
export interface Usage {
	readonly agentMiB: number;
	readonly envoyMiB: number;
	readonly agentFiles: number;
	readonly stateKiB: number;
	readonly generations: number;
}

/** One machine of the mesh: its clocks, its agent, its Envoy, and a service manager that starts the agent again. */
export class Machine {
	readonly clock: ShiftedClock;
	#workload: LocalWorkload;
	/** Suspended: its clocks and processes stand still. */
	isAsleep = false;
	/** Nobody starts the agent at present. */
	#isDown = true;
	/** Exit codes of agents that ended without being told to. */
	readonly surprises: string[] = [];

	private constructor(clock: ShiftedClock, workload: LocalWorkload) {
		this.clock = clock;
		this.#workload = workload;
	}

	static async create(clock: ShiftedClock, options: LocalWorkloadOptions): Promise<Machine> {
		return new Machine(clock, await LocalWorkload.create(options));
	}

	get workload(): LocalWorkload {
		return this.#workload;
	}

	get name(): string {
		return this.#workload.options.name;
	}

	get address(): string {
		return this.#workload.options.address;
	}

	start(): void {
		this.#isDown = false;
		this.#workload.start();
		void this.#workload.exit!.then(code => {
			if (this.#isDown) return;
			this.surprises.push(`the agent of ${this.name} ended with ${code}: ${this.#workload.log().slice(-1000)}`);
			setTimeout(() => this.#isDown || this.start(), restartMs);
		});
	}

	/** kill -9; Envoy goes on. */
	async killAgent(): Promise<void> {
		this.#isDown = true;
		this.#workload.signal('SIGKILL');
		await this.#workload.exit;
	}

	killEnvoy(): void {
		process.kill(this.#workload.envoyPid()!, 'SIGKILL');
	}

	/** A power cut: what is left is the disk. */
	async cutPower(): Promise<void> {
		const envoy = this.#workload.envoyPid();
		await this.killAgent();
		if (envoy !== undefined) process.kill(envoy, 'SIGKILL');
		rmSync(this.#workload.runDir, {recursive: true, force: true});
	}

	/** To be done while it is down. */
	async moveTo(address: string): Promise<void> {
		this.#workload = await LocalWorkload.create({...this.#workload.options, address});
	}

	suspend(): void {
		this.isAsleep = true;
		for (const pid of this.#processes()) process.kill(pid, 'SIGSTOP');
	}

	resume(): void {
		for (const pid of this.#processes()) process.kill(pid, 'SIGCONT');
		this.isAsleep = false;
	}

	/** Also wakes an agent whose timers became due when its clock was moved: it sleeps until something comes in. */
	look(): Promise<Seen | undefined> {
		return seeStatus(this.#workload);
	}

	usage(): Usage {
		const agent = this.#workload.pid!;
		const envoy = this.#workload.envoyPid()!;
		const generations = readdirSync(join(this.#workload.stateDir, 'identity', 'generations')).length;
		return {
			agentMiB: residentMiB(agent),
			envoyMiB: residentMiB(envoy),
			agentFiles: readdirSync(`/proc/${agent}/fd`).length,
			stateKiB: Math.round(bytesBelow(this.#workload.stateDir) / 1024),
			generations,
		};
	}

	async destroy(): Promise<void> {
		this.#isDown = true;
		if (this.isAsleep) this.resume();
		await this.#workload.destroy();
	}

	#processes(): number[] {
		return [this.#workload.pid, this.#workload.envoyPid()].filter(pid => pid !== undefined);
	}
}

function residentMiB(pid: number): number {
	return Math.round(Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1024);
}

function bytesBelow(directory: string): number {
	for (let tries = 10; ; tries--)
		try {
			return readdirSync(directory, {recursive: true, withFileTypes: true})
				.filter(entry => entry.isFile())
				.reduce((sum, entry) => sum + statSync(join(entry.parentPath, entry.name)).size, 0);
		} catch (error) {
			// The agent is in the middle of writing, and has moved one meanwhile.
			if (systemCode(error) !== 'ENOENT' || tries === 0) throw error;
		}
}
