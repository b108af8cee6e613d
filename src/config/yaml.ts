import {
	type Document,
	isAlias,
	isMap,
	isScalar,
	isSeq,
	LineCounter,
	type Node,
	parseDocument,
	type YAMLMap,
} from 'yaml';
import {type FileFindings, show} from './problems.ts';

/**
 * A mesh.yaml with a hundred CA certificates is half as large. The parser needs a kilobyte and ten microseconds for
 * a byte of the worst input, so the limit for other files would be too high here.
 */
const maxYamlBytes = 2 ** 18;
/** No configuration of ours or Istio's is half as deep; a stack is. */
const maxDepth = 64;
/** Enough for a file that repeats a probe or two, too little for a bomb. */
const maxAliases = 16;
/** Past this the file is not configuration; also bounds the work. */
const maxNodes = 50_000;

/** A YAML file that has been found harmless: one map, of limited size and depth, aliases bounded. */
export interface YamlFile {
	readonly root: YAMLMap;
	/** Line of a node, from 1. */
	lineOf(node: unknown): number;
	/** The node itself, or what an alias stands for. */
	follow(node: unknown): unknown;
	/** A scalar as it is written, so that `15` and `true` survive as text. undefined if it is no scalar. */
	textOf(node: unknown): string | undefined;
}

/**
 * Parses hostile text. undefined when there is nothing to use; then a problem has been noted, unless the file is
 * empty or only comments.
 */
export function openYaml(text: string, findings: FileFindings): YamlFile | undefined {
	if (Buffer.byteLength(text) > maxYamlBytes) {
		findings.problem(0, `is larger than ${maxYamlBytes} bytes`, 'copy the file again from where it was made');
		return undefined;
	}
	const lines = new LineCounter();
	let document: Document;
	// uniqueKeys compares each key with each other one; `checkTree` does it in linear time.
	const options = {lineCounter: lines, prettyErrors: false, uniqueKeys: false, logLevel: 'error'} as const;
	try {
		document = parseDocument(text, options);
	} catch (error) {
		if (!(error instanceof RangeError)) throw error;
		findings.problem(0, 'is nested too deeply', 'write plain YAML');
		return undefined;
	}
	const fault = document.errors[0];
	if (fault) {
		// The parser has met the end of the stack by itself.
		const what =
			fault.code === 'RESOURCE_EXHAUSTION' ? 'is nested too deeply' : `is not YAML: ${firstLine(fault.message)}`;
		findings.problem(
			lines.linePos(fault.pos[0]).line || 1,
			what,
			'mend that line; if the file is cut short, copy it again',
		);
		return undefined;
	}
	const {contents} = document;
	if (contents === null || (isScalar(contents) && contents.value === null)) return undefined;
	if (!isMap(contents)) {
		findings.problem(
			lines.linePos(contents.range?.[0] ?? 0).line,
			'is not a map of settings',
			'write "name: value" lines',
		);
		return undefined;
	}
	const file: YamlFile = {
		root: contents,
		lineOf: node => lines.linePos((node as Node | undefined)?.range?.[0] ?? 0).line || 1,
		follow: node => (isAlias(node) ? node.resolve(document) : node),
		textOf: node => {
			const target = isAlias(node) ? node.resolve(document) : node;
			if (!isScalar(target) || target.value === null) return undefined;
			return typeof target.value === 'string' ? target.value : (target.source ?? String(target.value));
		},
	};
	return checkTree(file, findings) ? file : undefined;
}

/** Bounds depth, nodes and aliases, and finds keys set twice. */
function checkTree(file: YamlFile, findings: FileFindings): boolean {
	const count = {nodes: 0, aliases: 0};
	const refuse = (node: unknown, what: string): false => {
		findings.problem(file.lineOf(node), what, 'write plain YAML');
		return false;
	};
	const visit = (node: unknown, depth: number): boolean => {
		if (++count.nodes > maxNodes) return refuse(node, `holds more than ${maxNodes} values`);
		if (depth > maxDepth) return refuse(node, `is nested more than ${maxDepth} levels deep`);
		if (isAlias(node)) {
			if (++count.aliases > maxAliases) return refuse(node, `uses more than ${maxAliases} aliases`);
			const target = file.follow(node);
			return target === undefined ? refuse(node, 'has an alias without an anchor') : visit(target, depth + 1);
		}
		if (isSeq(node)) return node.items.every(item => visit(item, depth + 1));
		if (!isMap(node)) return true;
		const seen = new Set<string>();
		return node.items.every(({key, value}) => {
			if (!isScalar(key)) return refuse(key ?? node, 'has a key that is not text');
			const name = String(key.value);
			if (seen.has(name)) findings.warn(file.lineOf(key), `${show(name)} is set twice; the last one counts`);
			seen.add(name);
			return visit(value, depth + 1);
		});
	};
	return visit(file.root, 0);
}

/** Plain values of a tree that {@link openYaml} has let through. Maps keep keys such as `__proto__` as data. */
export function toPlain(file: YamlFile, node: unknown): unknown {
	const target = file.follow(node);
	if (isMap(target)) return Object.fromEntries(target.items.map(({key, value}) => [keyOf(key), toPlain(file, value)]));
	if (isSeq(target)) return target.items.map(item => toPlain(file, item));
	if (!isScalar(target)) return null;
	// JSON has no word for these, and istiod reads JSON.
	return typeof target.value === 'number' && !Number.isFinite(target.value) ? (target.source ?? null) : target.value;
}

export const keyOf = (key: unknown): string => String(isScalar(key) ? key.value : key);

const firstLine = (message: string): string =>
	message
		.split('\n')[0]!
		.slice(0, 120)
		.replace(/^[A-Z](?=[a-z])/, letter => letter.toLowerCase());
