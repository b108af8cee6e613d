import type {Labels, Metrics} from '../lifecycle/index.ts';

export const sources = ['mesh', 'upstream', 'local'] as const;
export const outcomes = [
	'answered',
	'nodata',
	'nxdomain',
	'servfail',
	'refused',
	'formerr',
	'dropped',
	'overload',
	'timeout',
] as const;
export type Source = (typeof sources)[number];
export type Outcome = (typeof outcomes)[number];

/** Counts queries in an array: labels are rendered when somebody asks, not for each packet. */
export class Tally {
	readonly #counts = new Float64Array(sources.length * outcomes.length);

	constructor(metrics: Metrics) {
		metrics.counterFrom('dns_queries_total', 'Queries by who answered them and how', () => this.read());
	}

	count(source: Source, outcome: Outcome): void {
		this.#counts[sourceIndex[source] * outcomes.length + outcomeIndex[outcome]]!++;
	}

	*read(): Generator<readonly [Labels, number]> {
		for (const [row, source] of sources.entries()) {
			for (const [column, outcome] of outcomes.entries()) {
				const count = this.#counts[row * outcomes.length + column]!;
				if (count > 0) yield [{source, outcome}, count];
			}
		}
	}

	/** `mesh answered` → how often. */
	report(): Readonly<Record<string, number>> {
		return Object.fromEntries([...this.read()].map(([{source, outcome}, count]) => [`${source} ${outcome}`, count]));
	}
}

const indexOf = <const N extends string>(names: readonly N[]) =>
	Object.fromEntries(names.map((name, index) => [name, index])) as Record<N, number>;
const sourceIndex = indexOf(sources);
const outcomeIndex = indexOf(outcomes);
