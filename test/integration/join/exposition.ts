/** One family of metrics as a scraper reads it. */
export interface Family {
	readonly type: string;
	readonly series: ReadonlyMap<string, number>;
}

const sample = /^([a-zA-Z_:][\w:]*)(\{.*\})? (-?[\d.]+(?:e[+-]?\d+)?|NaN|[+-]Inf)( -?\d+)?$/;
const labels = /^\{(?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*"(?:,|(?=\})))*\}$/;

/**
 * Reads the Prometheus text format (0.0.4) as strictly as Prometheus itself: one TYPE for a family and before its
 * samples, a family in one piece, no series twice.
 * @throws Error with the line that is wrong
 */
export function parseExposition(text: string): ReadonlyMap<string, Family> {
	const families = new Map<string, {type: string; series: Map<string, number>}>();
	let current: string | undefined;
	const enter = (name: string, line: string) => {
		if (name === current) return families.get(name)!;
		if (families.has(name)) throw new Error(`family ${name} is in two pieces: ${line}`);
		current = name;
		const family = {type: 'untyped', series: new Map<string, number>()};
		families.set(name, family);
		return family;
	};
	if (!text.endsWith('\n')) throw new Error('the last line has no end');
	for (const line of text.slice(0, -1).split('\n')) {
		const [, kind, name, rest] = /^# (HELP|TYPE) (\S+) ?(.*)$/.exec(line) ?? [];
		if (kind) {
			const family = enter(name!, line);
			if (kind === 'TYPE' && family.series.size > 0) throw new Error(`TYPE after samples: ${line}`);
			if (kind === 'TYPE') family.type = rest!;
			continue;
		}
		if (line.startsWith('#') || line === '') continue;
		const [, series, labelText = '', value] = sample.exec(line) ?? [];
		if (!series) throw new Error(`not a sample: ${line}`);
		if (labelText !== '' && !labels.test(labelText)) throw new Error(`not labels: ${line}`);
		const base = series.replace(/_(bucket|sum|count)$/, '');
		const isPart = base === current && ['histogram', 'summary'].includes(families.get(base)!.type);
		const family = enter(isPart ? base : series, line);
		const key = series + labelText;
		if (family.series.has(key)) throw new Error(`series twice: ${line}`);
		family.series.set(key, Number(value!.replace('Inf', 'Infinity')));
	}
	return families;
}
