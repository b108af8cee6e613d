import {createHash} from 'node:crypto';
import {FieldReader} from '../proto/wire.ts';

/** Categories of Envoy's factory registry in which something may have to be taken out. */
export const category = {
	network: 'envoy.filters.network',
	http: 'envoy.filters.http',
	upstreamHttp: 'envoy.filters.http.upstream',
	upstreamNetwork: 'envoy.filters.upstream_network',
	listener: 'envoy.filters.listener',
	accessLog: 'envoy.access_loggers',
	filterState: 'filter_state.object',
} as const;

export type Category = (typeof category)[keyof typeof category];

const wanted: ReadonlySet<string> = new Set(Object.values(category));

/** What one Envoy can load, as far as the relay asks. */
export interface KnownExtensions {
	/** Is there a factory for this message (full name, without `type.googleapis.com/`) in this category? */
	hasType(category: Category, type: string): boolean;
	/** Is there a factory of this name? Object factories have no type. */
	hasName(category: Category, name: string): boolean;
	/** The same for two Envoys that can load the same things. */
	readonly fingerprint: string;
}

/**
 * What this Envoy can load, from `node.extensions` of the first request of its stream, which it fills from its own
 * factory registry. Entries without types are aliases and object factories; they count by name only.
 * @param node - an encoded `envoy.config.core.v3.Node`
 * @returns undefined when the list is missing: that is "not said", not "has none"
 * @throws WireError
 */
export function parseNodeExtensions(node: Buffer): KnownExtensions | undefined {
	const types: ByCategory = new Map();
	const names: ByCategory = new Map();
	const field = new FieldReader(node);
	while (field.next()) {
		if (field.number === 9) readExtension(field.message(), types, names);
	}
	if (names.size === 0) return undefined;
	return {
		hasType: (category, type) => types.get(category)?.has(type) ?? false,
		hasName: (category, name) => names.get(category)?.has(name) ?? false,
		fingerprint: fingerprintOf(types, names),
	};
}

type ByCategory = Map<string, Set<string>>;

function fingerprintOf(...lists: readonly ByCategory[]): string {
	const lines = lists.flatMap((list, index) =>
		[...list].flatMap(([category, entries]) => [...entries].map(entry => `${index} ${category} ${entry}`)),
	);
	return createHash('sha256').update(lines.sort().join('\n')).digest('hex').slice(0, 12);
}

/** Extension: name 1, category 2, disabled 5, type_urls 6 (bare message names). */
function readExtension(field: FieldReader, types: ByCategory, names: ByCategory): void {
	let name = '';
	let category = '';
	let isDisabled = false;
	const urls: string[] = [];
	while (field.next()) {
		if (field.number === 1) name = field.string();
		else if (field.number === 2) category = field.string();
		else if (field.number === 5) isDisabled = field.bool();
		else if (field.number === 6) urls.push(messageName(field.string()));
	}
	if (isDisabled || !wanted.has(category)) return;
	add(names, category, name);
	for (const url of urls) add(types, category, url);
}

function add(list: ByCategory, category: string, entry: string): void {
	const entries = list.get(category);
	if (entries) entries.add(entry);
	else list.set(category, new Set([entry]));
}

/** `type.googleapis.com/a.b.C` or `a.b.C` → `a.b.C`. */
export function messageName(typeUrl: string): string {
	return typeUrl.slice(typeUrl.lastIndexOf('/') + 1);
}
