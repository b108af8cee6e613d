import type {Removal} from './rewrite-surgery.ts';

/** One kind of removal, over all resources. */
export interface RemovalKind extends Removal {
	/** How often it was done, pushes of the same resource included. `resource` is the first it was done to. */
	readonly times: number;
}

/** Names of optional filters are the sender's to choose, so the list of kinds has an end. */
const mostKinds = 100;

/** What was taken out, by kind: for the log once, for the status page always. */
export class RemovalSummary {
	readonly #kinds = new Map<string, RemovalKind & {times: number}>();

	/** @returns true the first time this kind is noted, which is when it is worth a line in the log */
	note(removal: Removal): boolean {
		const key = `${removal.category} ${removal.name} ${removal.type} ${removal.lost}`;
		const kind = this.#kinds.get(key);
		if (kind) {
			kind.times++;
			return false;
		}
		if (this.#kinds.size >= mostKinds) return false;
		this.#kinds.set(key, {...removal, times: 1});
		return true;
	}

	/** Another Envoy has come, which may load more. */
	clear(): void {
		this.#kinds.clear();
	}

	list(): readonly RemovalKind[] {
		return [...this.#kinds.values()];
	}
}
