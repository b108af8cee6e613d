import {type ChildProcess, spawn} from 'node:child_process';
import {createInterface} from 'node:readline';
import {fileURLToPath} from 'node:url';
import {killAtEnd, killNow} from './cleanup.ts';
import type {PushRequest, PushResult, StartRequest} from './control-plane.ts';

/** The bench's side of control-plane.ts. */
export class ControlPlane {
	readonly #child: ChildProcess;
	readonly #waiting = new Map<number, {resolve: (result: never) => void; reject: (error: Error) => void}>();
	readonly #forget: () => void;
	readonly bundle: string;
	port = 0;
	#lastId = 0;

	private constructor(bundle: string) {
		this.bundle = bundle;
		const child = spawn(process.execPath, [fileURLToPath(new URL('control-plane.ts', import.meta.url))], {
			stdio: ['pipe', 'pipe', 'inherit'],
		});
		this.#child = child;
		this.#forget = killAtEnd(() => killNow(child.pid));
		createInterface({input: child.stdout}).on('line', line => {
			const {id, result, error} = JSON.parse(line) as {id: number; result: never; error?: string};
			const waiter = this.#waiting.get(id);
			this.#waiting.delete(id);
			if (error === undefined) waiter?.resolve(result);
			else waiter?.reject(new Error(`control plane: ${error}`));
		});
		child.once('exit', code => {
			for (const {reject} of this.#waiting.values()) reject(new Error(`the control plane has ended with code ${code}`));
			this.#waiting.clear();
		});
	}

	static async start(request: StartRequest): Promise<ControlPlane> {
		const plane = new ControlPlane(request.bundleDirectory);
		plane.port = (await plane.#call<{port: number}>('start', request)).port;
		return plane;
	}

	setServices(count: number): Promise<void> {
		return this.#call('services', {count});
	}

	setCertificateLifetime(ms: number | undefined): Promise<void> {
		return this.#call('certificateLifetime', {ms});
	}

	/** Certificates signed since the start. */
	issued(): Promise<number> {
		return this.#call('issued', {});
	}

	untilQuiet(): Promise<void> {
		return this.#call('untilQuiet', {});
	}

	push(request: PushRequest): Promise<PushResult> {
		return this.#call('push', request);
	}

	async stop(): Promise<void> {
		const exited = new Promise(resolve => this.#child.once('exit', resolve));
		this.#child.stdin!.end();
		await exited;
		this.#forget();
	}

	#call<T>(call: string, input: object): Promise<T> {
		const id = ++this.#lastId;
		return new Promise<T>((resolve, reject) => {
			this.#waiting.set(id, {resolve, reject});
			this.#child.stdin!.write(`${JSON.stringify({id, call, input})}\n`);
		});
	}
}
