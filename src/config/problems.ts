import {AgentError} from '../errors.ts';

/** One thing that is wrong, as `config check` and the error of {@link loadConfig} list it. */
export interface Problem {
	readonly severity: 'error' | 'warning';
	/** `--flag`, `ONRAMP_X`, `/etc/onramp/onramp.yaml:12`, `…/cluster.env:3`, or a path. */
	readonly place: string;
	/** Lower case, with the value seen unless that may be a secret. */
	readonly message: string;
	/** What to do about it. */
	readonly remedy: string;
}

/** A file can be wrong in a million lines; nobody reads more than this many. */
const problemsPerFile = 20;

/** Collects problems so that all are told at once. */
export class Findings {
	readonly problems: Problem[] = [];
	readonly warnings: string[] = [];

	problem(place: string, message: string, remedy: string): void {
		// One variable may feed several settings; its fault is told once.
		if (this.problems.some(known => known.place === place && known.message === message)) return;
		this.problems.push({severity: 'error', place, message, remedy});
	}

	warn(place: string, message: string): void {
		this.warnings.push(`${place}: ${message}`);
	}

	/** @throws AgentError `config.invalid` with every problem, if there is one */
	throwIfAny(): void {
		const count = this.problems.length;
		if (count === 0) return;
		const list = this.problems.map(renderProblem);
		const message =
			count === 1
				? `read configuration: ${list[0]}`
				: `read configuration: ${count} problems\n${list.map(line => `  ${line}`).join('\n')}`;
		throw new AgentError('config.invalid', message, {
			hint: count === 1 ? this.problems[0]!.remedy : 'mend the places listed, then run "onramp config check"',
			fields: {problems: [...this.problems]},
		});
	}
}

/** As {@link Findings}, for one file: stops listing after a few. */
export class FileFindings {
	readonly path: string;
	readonly #findings: Findings;
	#problems = 0;
	#warnings = 0;

	constructor(path: string, findings: Findings) {
		this.path = path;
		this.#findings = findings;
	}

	problem(line: number, message: string, remedy: string): void {
		if (++this.#problems <= problemsPerFile) this.#findings.problem(this.place(line), message, remedy);
	}

	warn(line: number, message: string): void {
		if (++this.#warnings <= problemsPerFile) this.#findings.warn(this.place(line), message);
	}

	/** Whether further problems would not be listed; a parser may give up then. */
	get isFull(): boolean {
		return this.#problems >= problemsPerFile;
	}

	/** @param line - counted from 1; 0 means the file as a whole */
	place(line: number): string {
		return line === 0 ? this.path : `${this.path}:${line}`;
	}
}

export function renderProblem({place, message, remedy}: Problem): string {
	return `${place}: ${message}; ${remedy}`;
}

/** A value as shown in messages: quoted, control characters escaped, cut when long. */
export function show(value: string): string {
	return JSON.stringify(value.length > 80 ? `${value.slice(0, 77)}...` : value);
}

/** ` (did you mean "x"?)` for the nearest known name, or ''. */
export function suggest(name: string, known: Iterable<string>): string {
	if (name.length > 64) return '';
	let best: {name: string; distance: number} | undefined;
	for (const candidate of known) {
		const distance = editDistance(name, candidate);
		if (distance <= Math.max(2, Math.floor(name.length / 3)) && distance < (best?.distance ?? Number.POSITIVE_INFINITY))
			best = {name: candidate, distance};
	}
	return best ? ` (did you mean "${best.name}"?)` : '';
}

function editDistance(left: string, right: string): number {
	let previous = Array.from({length: right.length + 1}, (_, index) => index);
	for (let row = 1; row <= left.length; row++) {
		const current = [row];
		for (let column = 1; column <= right.length; column++) {
			const change = previous[column - 1]! + (left[row - 1] === right[column - 1] ? 0 : 1);
			current.push(Math.min(change, previous[column]! + 1, current[column - 1]! + 1));
		}
		previous = current;
	}
	return previous[right.length]!;
}
