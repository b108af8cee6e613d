import {LocalWorkload} from '../../src/sandbox/local-workload.ts';
import type {Agent} from './agent.ts';
import {killAllIn, killAtEnd, killNow} from './cleanup.ts';
import type {Target} from './http.ts';

export interface OnrampOptions {
	readonly directory: string;
	readonly bundle: string;
	readonly envoyPath: string;
	/** Where to leave CPU profiles; the agent then runs from its sources, so that they name lines. */
	readonly profileDirectory: string | undefined;
	/** In place of the machine's. */
	readonly resolvConfPath?: string | undefined;
}

export const onrampNode = {name: 'bench-onramp', address: '127.0.3.1'};

export async function createOnramp(options: OnrampOptions): Promise<Agent> {
	const {directory, bundle, envoyPath, profileDirectory, resolvConfPath} = options;
	const workload = await LocalWorkload.create({
		...onrampNode,
		directory,
		bundle,
		envoyPath,
		agentPath: profileDirectory ? 'src/main.ts' : 'dist/onramp.cjs',
		flags: [
			'--proxy-termination-drain',
			'100ms',
			'--proxy-stats-regexes',
			'.*update_time',
			...(resolvConfPath ? ['--dns-resolv-conf', resolvConfPath] : []),
		],
		...(profileDirectory ? {env: {NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${profileDirectory}`}} : {}),
	});
	return new Onramp(workload);
}

class Onramp implements Agent {
	readonly label = 'onramp';
	readonly #workload: LocalWorkload;
	readonly #forget: () => void;
	hasEnded = true;

	constructor(workload: LocalWorkload) {
		this.#workload = workload;
		this.#forget = killAtEnd(() => {
			if (!this.hasEnded) killNow(workload.pid);
			killAllIn(workload.options.directory);
		});
	}

	get pid(): number {
		return this.#workload.pid!;
	}

	get status(): Target {
		return {host: '127.0.0.1', port: this.#workload.ports.status};
	}

	get admin(): Target {
		return {socketPath: `${this.#workload.runDir}/admin.sock`};
	}

	get dnsPort(): number {
		return this.#workload.ports.dns;
	}

	get logPath(): string {
		return this.#workload.logPath;
	}

	readonly rotate = (): Promise<unknown> => this.#workload.command('rotate');

	start(): void {
		this.#workload.start();
		this.hasEnded = false;
		void this.#workload.exit!.then(() => {
			this.hasEnded = true;
		});
	}

	async stop(): Promise<void> {
		await this.#workload.stop();
	}

	async crash(): Promise<void> {
		this.#workload.signal('SIGKILL');
		await this.#workload.exit;
	}

	async destroy(): Promise<void> {
		if (!this.hasEnded) await this.crash();
		killAllIn(this.#workload.options.directory);
		this.#forget();
	}
}
