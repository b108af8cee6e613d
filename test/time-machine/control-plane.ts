import {type ChildProcess, fork} from 'node:child_process';
import {fileURLToPath} from 'node:url';
import type {SandboxOptions} from '../../src/sandbox/index.ts';
import type {ServiceSpec, WorkloadGroupSpec} from '../../src/sandbox/registry.ts';

/** What the child is started with. */
export interface Start {
	readonly options: SandboxOptions;
	readonly groups: readonly WorkloadGroupSpec[];
	readonly services: readonly ServiceSpec[];
}

/** A method of the sandbox, `faults.NAME`, or `look`. */
export interface Order {
	readonly id: number;
	readonly name: string;
	readonly input: readonly unknown[];
}

export interface Reply {
	readonly id: number;
	readonly result?: unknown;
	readonly error?: string;
}

/** What the control plane sees of the mesh. */
export interface Sight {
	/** Names of nodes with a stream. */
	readonly connected: readonly string[];
	/** Addresses of entries whose node is connected. */
	readonly registered: readonly string[];
	/** What Envoys did not take, in their words. */
	readonly refusals: readonly string[];
	readonly counts: {
		readonly issuedByToken: number;
		readonly issuedByCertificate: number;
		readonly streamsOpened: number;
		readonly refusedHandshakes: number;
	};
}

/** The sandbox in another process, by whose clocks it lives. */
export class ControlPlane {
	readonly #child: ChildProcess;
	readonly #waiting = new Map<number, (reply: Reply) => void>();
	#ids = 0;

	private constructor(child: ChildProcess) {
		this.#child = child;
		child.on('message', (reply: Reply) => this.#waiting.get(reply.id)?.(reply));
		child.once('exit', code => {
			for (const [id, settle] of this.#waiting) settle({id, error: `the control plane has ended with ${code}`});
		});
	}

	static async start(start: Start, env: Readonly<Record<string, string>>): Promise<ControlPlane> {
		const path = fileURLToPath(new URL('control-plane-child.ts', import.meta.url));
		const child = fork(path, [JSON.stringify(start)], {
			env: {PATH: process.env['PATH'] ?? '', ...env},
			serialization: 'advanced',
		});
		const control = new ControlPlane(child);
		await control.#answerTo(0);
		return control;
	}

	look(): Promise<Sight> {
		return this.tell('look') as Promise<Sight>;
	}

	async tell(name: string, ...input: readonly unknown[]): Promise<unknown> {
		const id = ++this.#ids;
		const answer = this.#answerTo(id);
		this.#child.send({id, name, input} satisfies Order, error => {
			if (error) this.#waiting.get(id)?.({id, error: String(error)});
		});
		return answer;
	}

	async stop(): Promise<void> {
		if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
		const ended = new Promise(resolve => this.#child.once('exit', resolve));
		this.#child.kill('SIGKILL');
		await ended;
	}

	#answerTo(id: number): Promise<unknown> {
		return new Promise((resolve, reject) => {
			this.#waiting.set(id, ({result, error}) => {
				this.#waiting.delete(id);
				if (error === undefined) resolve(result);
				else reject(new Error(error));
			});
		});
	}
}
