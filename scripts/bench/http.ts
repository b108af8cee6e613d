import {Agent, request} from 'node:http';

export interface Answer {
	readonly status: number;
	readonly body: string;
}

export type Target = {readonly host: string; readonly port: number} | {readonly socketPath: string};

/** One request; rejects when nobody answers in time. */
export function get(
	target: Target,
	path: string,
	{agent, timeoutMs = 5000}: {agent?: Agent; timeoutMs?: number} = {},
): Promise<Answer> {
	return new Promise((resolve, reject) => {
		const call = request(
			{...target, path, agent: agent ?? false, signal: AbortSignal.timeout(timeoutMs)},
			async response => {
				try {
					resolve({status: response.statusCode ?? 0, body: Buffer.concat(await response.toArray()).toString('utf8')});
				} catch (error) {
					reject(error);
				}
			},
		);
		call.on('error', reject);
		call.end();
	});
}

/** Asks over and over on one connection and keeps the longest wait for an answer, ms. */
export class StallWatch {
	readonly #connection = new Agent({keepAlive: true, maxSockets: 1});
	readonly #done: Promise<void>;
	#isStopped = false;
	longestMs = 0;
	asked = 0;

	constructor(target: Target, path: string, everyMs: number) {
		this.#done = this.#run(target, path, everyMs);
	}

	async #run(target: Target, path: string, everyMs: number): Promise<void> {
		while (!this.#isStopped) {
			const fromMs = performance.now();
			// Whatever it answers: a 404 comes from the agent's own loop just as well.
			await get(target, path, {agent: this.#connection, timeoutMs: 60_000});
			const tookMs = performance.now() - fromMs;
			this.asked++;
			this.longestMs = Math.max(this.longestMs, tookMs);
			await new Promise(resolve => setTimeout(resolve, Math.max(0, everyMs - tookMs)));
		}
	}

	async stop(): Promise<void> {
		this.#isStopped = true;
		await this.#done;
		this.#connection.destroy();
	}
}
