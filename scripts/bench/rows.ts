import {median} from './figures.ts';

/** One line of the result. Less is better in every one. */
export interface Row {
	/** `push-5000-initial-cpu`: what `--only` matches and scripts read. */
	readonly id: string;
	readonly title: string;
	readonly unit: 'ms' | 'MiB' | 'ms/s' | 'µs';
	/** One value a run; empty when it was not, or cannot be, measured. */
	readonly onramp: readonly number[];
	readonly peer: readonly number[];
	/** Of the runs' values; the median unless given. */
	readonly reduce?: ((values: readonly number[]) => number) | undefined;
	readonly note?: string | undefined;
}

export interface Figures {
	readonly onramp: number | undefined;
	readonly peer: number | undefined;
	/** onramp / peer. */
	readonly ratio: number | undefined;
}

export function figuresOf({onramp, peer, reduce = median}: Row): Figures {
	const [a, b] = [onramp, peer].map(values => (values.length > 0 ? reduce(values) : undefined));
	return {onramp: a, peer: b, ratio: a !== undefined && b !== undefined && b > 0 ? a / b : undefined};
}

const columns = [10, 10, 7] as const;

export function renderTable(rows: readonly Row[]): string {
	const width = Math.max(...rows.map(({title}) => title.length), 4);
	const line = (title: string, cells: readonly string[]) =>
		`${title.padEnd(width)} ${cells.map((cell, index) => cell.padStart(columns[index]!)).join(' ')}`;
	const head = `${line('row', ['onramp', 'peer', 'ratio'])}  unit`;
	return [
		head,
		'-'.repeat(head.length),
		...rows.map(row => `${line(row.title, renderCells(row))}  ${renderTail(row)}`),
	].join('\n');
}

/** The same for one row, as it is measured. */
export function renderRow(row: Row): string {
	const [onramp, peer, ratio] = renderCells(row);
	return `${row.title}: ${onramp}, peer ${peer}, ratio ${ratio}  ${renderTail(row)}`;
}

function renderCells(row: Row): [string, string, string] {
	const {onramp, peer, ratio} = figuresOf(row);
	return [renderNumber(onramp), renderNumber(peer), ratio === undefined ? '-' : ratio.toFixed(2)];
}

const renderTail = ({unit, note}: Row): string => (note ? `${unit}  (${note})` : unit);

function renderNumber(value: number | undefined): string {
	if (value === undefined) return '-';
	return Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(Math.abs(value) >= 10 ? 1 : 2);
}
