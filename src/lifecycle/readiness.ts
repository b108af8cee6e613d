/**
 * Readiness is a list of named gates. A gate is closed until its part opens it, and a closed gate always says why
 * and what to do. `/readyz` shows them; systemd hears READY when all are open.
 */
export interface GateState {
	readonly name: string;
	readonly isOpen: boolean;
	/** Why it is closed, or what it last said when it opened. */
	readonly reason: string;
	/** What to do about it, when somebody can do something. */
	readonly hint?: string | undefined;
	/** Wall-clock time of the last change between open and closed. */
	readonly since: Date;
}

export interface Gate {
	open(reason?: string): void;
	close(reason: string, hint?: string): void;
}

export class Readiness {
	readonly #gates = new Map<string, GateState>();
	readonly #listeners = new Set<() => void>();
	readonly #now: () => Date;

	constructor(names: readonly string[], now: () => Date = () => new Date()) {
		this.#now = now;
		for (const name of names) this.#gates.set(name, {name, isOpen: false, reason: 'not started yet', since: now()});
	}

	/** @throws if the name was not declared: a gate nobody lists would hold up nothing */
	gate(name: string): Gate {
		if (!this.#gates.has(name)) throw new Error(`no readiness gate "${name}"`);
		return {
			open: (reason = 'ok') => this.#set(name, true, reason, undefined),
			close: (reason, hint) => this.#set(name, false, reason, hint),
		};
	}

	get isReady(): boolean {
		return this.states().every(state => state.isOpen);
	}

	states(): readonly GateState[] {
		return [...this.#gates.values()];
	}

	/** Calls back after each change of a gate. Returns how to stop that. */
	onChange(listener: () => void): () => void {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	#set(name: string, isOpen: boolean, reason: string, hint: string | undefined): void {
		const before = this.#gates.get(name)!;
		if (before.isOpen === isOpen && before.reason === reason && before.hint === hint) return;
		const since = before.isOpen === isOpen ? before.since : this.#now();
		this.#gates.set(name, {name, isOpen, reason, hint, since});
		for (const listener of this.#listeners) listener();
	}
}
