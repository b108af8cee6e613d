import type {Logger} from '../log.ts';
import type {Running} from './running.ts';

/** Parts started in order and stopped in reverse. */
export class ComponentGroup {
	readonly #parts: {name: string; part: Running}[] = [];
	/** What is still on its way must not be forgotten when the group stops. */
	readonly #starting = new Set<Promise<unknown>>();
	readonly #log: Logger | undefined;

	constructor(log?: Logger) {
		this.#log = log;
	}

	async start<T extends Running>(name: string, start: () => T | Promise<T>): Promise<T> {
		const starting = (async () => {
			const part = await start();
			// A part that fails while another is still starting is noticed by untilEnd, not by the process.
			part.finished.catch(() => {});
			this.#parts.push({name, part});
			return part;
		})();
		this.#starting.add(starting);
		try {
			return await starting;
		} finally {
			this.#starting.delete(starting);
		}
	}

	/** From now on this part is stopped before all that are there already. */
	moveToEnd(name: string): void {
		const at = this.#parts.findIndex(part => part.name === name);
		this.#parts.push(...this.#parts.splice(at, 1));
	}

	/** Waits for the signal (resolves) or for the first part that ends by itself (rejects if it failed). */
	async untilEnd(signal: AbortSignal): Promise<void> {
		const aborted = new Promise<void>(resolve => {
			if (signal.aborted) resolve();
			signal.addEventListener('abort', () => resolve(), {once: true});
		});
		await Promise.race([aborted, ...this.#parts.map(({part}) => part.finished)]);
	}

	/** Stops all in reverse. One that fails to stop is logged and does not keep the rest from stopping. */
	async stop(): Promise<void> {
		await Promise.allSettled(this.#starting);
		for (const {name, part} of this.#parts.splice(0).reverse()) {
			try {
				await part.stop();
			} catch (err) {
				this.#log?.warn({err, part: name}, 'part did not stop in order');
			}
		}
	}
}
