import type {ErrorDetail} from './envelope.ts';

/**
 * What an Envoy has refused of one type, and still runs without: until something else comes under that name, or the
 * name goes. The control plane sends the same again with each push, and must not hear that all is well then.
 */
export class Refusals {
	readonly #names = new Set<string>();
	#latest: {readonly error: ErrorDetail; readonly at: Date} | undefined;

	/** @param sent - names in the refused answer; those that Envoy's message names are the ones it means */
	note(error: ErrorDetail, sent: readonly string[], at: Date): void {
		const named = sent.filter(name => error.message.includes(name));
		this.taken(sent);
		for (const name of named.length > 0 ? named : sent) this.#names.add(name);
		this.#latest = {error, at};
	}

	/** Envoy has taken these, or dropped them. */
	taken(names: readonly string[]): void {
		if (this.#names.size === 0) return;
		for (const name of names) this.#names.delete(name);
		if (this.#names.size === 0) this.#latest = undefined;
	}

	get names(): ReadonlySet<string> {
		return this.#names;
	}

	get latest(): {readonly error: ErrorDetail; readonly at: Date} | undefined {
		return this.#latest;
	}

	/** What to say of an answer with these names in it, some of them with a new content that is yet to be judged. */
	standing(names: readonly string[], changed: readonly {readonly name: string}[]): ErrorDetail | undefined {
		if (!this.#latest) return undefined;
		const isSame = (name: string) => this.#names.has(name) && !changed.some(each => each.name === name);
		return names.some(isSame) ? this.#latest.error : undefined;
	}
}
