/**
 * A small registry in the Prometheus text format. `prom-client` does more and costs 13 MiB at import; counters and
 * gauges are all the agent needs.
 */
export type Labels = Readonly<Record<string, string>>;

interface Family {
	readonly help: string;
	readonly type: 'counter' | 'gauge';
	readonly values: Map<string, number>;
	readonly read?: (() => number | undefined) | undefined;
	readonly readAll?: (() => Iterable<readonly [Labels, number]>) | undefined;
}

export class Metrics {
	readonly #families = new Map<string, Family>();

	/** @param name - without the `onramp_` prefix; counters end in `_total` */
	counter(name: string, help: string): (labels?: Labels, by?: number) => void {
		const family = this.#family(name, help, 'counter');
		return (labels = {}, by = 1) => {
			const key = renderLabels(labels);
			family.values.set(key, (family.values.get(key) ?? 0) + by);
		};
	}

	gauge(name: string, help: string): (value: number, labels?: Labels) => void {
		const family = this.#family(name, help, 'gauge');
		return (value, labels = {}) => family.values.set(renderLabels(labels), value);
	}

	/** A gauge read at scrape time; `undefined` leaves it out of that scrape. */
	gaugeFrom(name: string, help: string, read: () => number | undefined): void {
		this.#family(name, help, 'gauge', read);
	}

	/** Counters that are kept elsewhere, because they are counted too often for labels, and read at scrape time. */
	counterFrom(name: string, help: string, readAll: () => Iterable<readonly [Labels, number]>): void {
		this.#families.set(name, {help, type: 'counter', values: new Map(), readAll});
	}

	render(): string {
		let text = '';
		for (const [name, family] of this.#families) {
			const {help, type} = family;
			const rows = rowsOf(family);
			if (rows.length === 0) continue;
			// A sentence, as in the metrics of Prometheus itself, whoever wrote it.
			text += `# HELP onramp_${name} ${help.replace(/\.?$/, '.')}\n# TYPE onramp_${name} ${type}\n`;
			for (const [labels, number] of rows) text += `onramp_${name}${labels} ${number}\n`;
		}
		return text;
	}

	#family(name: string, help: string, type: Family['type'], read?: Family['read']): Family {
		const known = this.#families.get(name);
		if (known) return known;
		const family: Family = {help, type, values: new Map(), read};
		this.#families.set(name, family);
		return family;
	}
}

function rowsOf({values, read, readAll}: Family): (readonly [string, number])[] {
	if (readAll) return [...readAll()].map(([labels, value]) => [renderLabels(labels), value] as const);
	const value = read?.();
	return value === undefined ? [...values] : [['', value]];
}

function renderLabels(labels: Labels): string {
	const parts = Object.entries(labels).map(([name, value]) => `${name}="${escapeLabel(value)}"`);
	return parts.length === 0 ? '' : `{${parts.join(',')}}`;
}

function escapeLabel(value: string): string {
	return value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}
