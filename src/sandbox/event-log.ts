/** What has happened, kept in order and told to whoever listens. Holds the newest ten thousand. */
export class EventLog<T> {
	readonly #events: T[] = [];
	readonly #listeners = new Set<(event: T) => void>();

	get all(): readonly T[] {
		return this.#events;
	}

	add(event: T): void {
		this.#events.push(event);
		if (this.#events.length > 10_000) this.#events.shift();
		for (const listener of this.#listeners) listener(event);
	}

	/** Returns how to stop listening. */
	on(listener: (event: T) => void): () => void {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	/**
	 * The first event that matches, past ones included.
	 * @throws Error after `deadlineMs`, naming what was waited for
	 */
	async waitFor(what: string, matches: (event: T) => boolean, deadlineMs = 10_000): Promise<T> {
		const past = this.#events.find(matches);
		if (past !== undefined) return past;
		return new Promise((resolve, reject) => {
			const stop = this.on(event => {
				if (!matches(event)) return;
				clearTimeout(timer);
				stop();
				resolve(event);
			});
			const timer = setTimeout(() => {
				stop();
				reject(new Error(`no ${what} within ${deadlineMs} ms`));
			}, deadlineMs);
		});
	}
}
