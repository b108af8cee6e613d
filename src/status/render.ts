import type {GateReport, StatusReport} from './report.ts';

/**
 * The report as text for people, plain ASCII. Parts are printed as they come, so that a part may report something new
 * without a change here: names in words, moments with their distance, what is empty left out.
 */
export function renderStatus(report: StatusReport): string {
	const {version, pid, uptimeS, ready, stopping, gates, parts} = report;
	const state = stopping ? 'STOPPING' : ready ? 'READY' : 'NOT READY';
	const at = new Date(report.at);
	const lines = [`onramp ${version} (pid ${pid}), up ${renderDuration(uptimeS * 1000)}: ${state}`, ''];
	const width = Math.max(0, ...gates.map(({name}) => name.length));
	for (const gate of gates) lines.push(...renderGate(gate, width, at));
	for (const [name, part] of Object.entries(parts)) {
		// Digests, which commands compare and nobody reads.
		if (name === 'configuration') continue;
		const rows = renderFields(part, 1, at);
		if (rows.length > 0) lines.push('', words(name), ...rows);
	}
	return `${lines.join('\n')}\n`;
}

function renderGate({name, open, reason, hint, since}: GateReport, width: number, at: Date): string[] {
	const forMs = at.getTime() - new Date(since).getTime();
	const line = `${open ? '[ok]' : '[--]'} ${name.padEnd(width)}  ${printable(reason)} (for ${renderDuration(forMs)})`;
	return hint === undefined || open ? [line] : [line, `     ${' '.repeat(width)}  do: ${printable(hint)}`];
}

/** Deep enough for what a person reads; the rest is in `--json`. */
const deepest = 4;

function renderFields(value: unknown, depth: number, at: Date): string[] {
	const indent = '  '.repeat(depth);
	if (!isRecord(value)) return isEmpty(value) ? [] : [`${indent}${renderValue(value, at)}`];
	return Object.entries(value).flatMap(([name, field]) => {
		if (isEmpty(field)) return [];
		if (Array.isArray(field)) return renderList(words(name), field, indent, at);
		if (!isRecord(field)) return [`${indent}${words(name)}: ${renderValue(field, at)}`];
		const inner = depth < deepest ? renderFields(field, depth + 1, at) : [];
		return inner.length === 0 ? [] : [`${indent}${words(name)}:`, ...inner];
	});
}

function renderList(label: string, items: readonly unknown[], indent: string, at: Date): string[] {
	if (items.every(item => !isRecord(item)))
		return [`${indent}${label}: ${items.map(item => renderValue(item, at)).join(', ')}`];
	return [`${indent}${label}:`, ...items.map(item => `${indent}  - ${renderItem(item, at)}`)];
}

/** `name (category): lost: ...` for what was removed; otherwise the fields in a row. */
function renderItem(item: unknown, at: Date): string {
	if (!isRecord(item)) return renderValue(item, at);
	if (typeof item['name'] === 'string' && typeof item['lost'] === 'string') {
		const where = typeof item['category'] === 'string' ? ` (${item['category']})` : '';
		return printable(`${item['name']}${where}; lost: ${item['lost']}`);
	}
	const fields = Object.entries(item).filter(([, field]) => !isEmpty(field));
	return fields.map(([name, field]) => `${words(name)} ${renderValue(field, at)}`).join(', ');
}

const moment = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/;

function renderValue(value: unknown, at: Date): string {
	if (typeof value === 'boolean') return value ? 'yes' : 'no';
	if (typeof value !== 'string') return printable(JSON.stringify(value));
	if (!moment.test(value)) return printable(value);
	const awayMs = new Date(value).getTime() - at.getTime();
	const distance = awayMs >= 0 ? `in ${renderDuration(awayMs)}` : `${renderDuration(-awayMs)} ago`;
	return `${value.slice(0, 19).replace('T', ' ')} UTC (${distance})`;
}

/** The two largest units: `3 d 4 h`, `12 min 5 s`. */
export function renderDuration(ms: number): string {
	const seconds = Math.max(0, Math.floor(ms / 1000));
	const units: [string, number][] = [
		['d', Math.floor(seconds / 86_400)],
		['h', Math.floor(seconds / 3600) % 24],
		['min', Math.floor(seconds / 60) % 60],
		['s', seconds % 60],
	];
	const first = units.findIndex(([, count]) => count > 0);
	if (first < 0) return '0 s';
	const shown = units.slice(first, first + 2).filter(([, count]) => count > 0);
	return shown.map(([unit, count]) => `${count} ${unit}`).join(' ');
}

/** `expiresAt` -> `expires at`. Names may be keys from the network too. */
function words(name: string): string {
	return printable(name)
		.replace(/([a-z0-9])([A-Z])/g, '$1 $2')
		.replace(/[A-Z][a-z]/g, head => head.toLowerCase());
}

/** What comes from the network must not move the cursor of whoever reads it. */
function printable(text: string): string {
	return text.replace(/[\x00-\x1f\x7f-\x9f]+/g, ' ');
}

function isRecord(value: unknown): value is Record<string, unknown> {
	return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isEmpty(value: unknown): boolean {
	return value === null || value === undefined || value === '' || (Array.isArray(value) && value.length === 0);
}
