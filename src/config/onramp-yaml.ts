import {isMap, isSeq} from 'yaml';
import {type FileFindings, suggest} from './problems.ts';
import type {Setting} from './settings.ts';
import type {Raw} from './values.ts';
import {keyOf, openYaml, toPlain, type YamlFile} from './yaml.ts';

/** A setting as it stands in `onramp.yaml`. */
export interface FileEntry {
	readonly raw: Raw;
	readonly line: number;
}

/**
 * Reads `onramp.yaml` into dotted key → value. A key that no setting has is a problem, with the nearest one that
 * exists; so is a key without a value.
 */
export function parseOnrampYaml(
	text: string,
	settings: readonly Setting[],
	findings: FileFindings,
): ReadonlyMap<string, FileEntry> {
	const entries = new Map<string, FileEntry>();
	const file = openYaml(text, findings);
	const allowed = settings.filter(setting => setting.isFileAllowed);
	const keys = allowed.map(setting => setting.key);
	const trees = new Set(allowed.filter(({value}) => value.isTree).map(({key}) => key));
	const visit = (node: unknown, prefix: string): void => {
		if (!file || !isMap(node)) return;
		for (const {key: keyNode, value} of node.items) {
			const key = `${prefix}${keyOf(keyNode)}`;
			const line = file.lineOf(keyNode);
			const target = file.follow(value);
			if (keys.includes(key)) {
				const raw = trees.has(key) ? JSON.stringify(toPlain(file, target)) : rawOf(file, target);
				if (raw === undefined)
					findings.problem(line, `${key} has no usable value`, 'give it a value, or take the line out');
				else entries.set(key, {raw, line});
			} else if (!keys.some(known => known.startsWith(`${key}.`))) {
				findings.problem(
					line,
					`unknown setting "${key.slice(0, 80)}"${suggest(key, keys)}`,
					'mend the name; docs/configuration.md lists them all',
				);
			} else if (isMap(target)) visit(target, `${key}.`);
			else
				findings.problem(
					line,
					`${key} is a section, and has no settings below it`,
					'indent its settings below it, or take it out',
				);
		}
	};
	visit(file?.root, '');
	return entries;
}

function rawOf(file: YamlFile, node: unknown): Raw | undefined {
	if (isSeq(node)) return allOrNone(node.items.map(item => file.textOf(item)));
	if (!isMap(node)) return file.textOf(node);
	const values = allOrNone(
		node.items.map(({value}) => {
			const target = file.follow(value);
			return isSeq(target) ? allOrNone(target.items.map(item => file.textOf(item)))?.join(' ') : file.textOf(value);
		}),
	);
	return values && Object.fromEntries(node.items.map(({key}, index) => [keyOf(key), values[index]!]));
}

function allOrNone(texts: readonly (string | undefined)[]): string[] | undefined {
	return texts.every(text => text !== undefined) ? (texts as string[]) : undefined;
}
