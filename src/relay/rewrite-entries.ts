import type {FieldReader} from '../proto/wire.ts';
import {type Category, messageName} from './extensions.ts';
import {type Held, hasLater, noteRemoval, nothingHeld, readAny, type Surgery} from './rewrite-surgery.ts';

/** Where an entry keeps its parts, by field number; `name` is 1 everywhere. */
export interface EntryShape {
	readonly category: Category;
	readonly typedConfig: number;
	readonly configDiscovery?: number;
	readonly isOptional?: number;
	/** The last one ends the chain: Envoy refuses a chain without it, so it always stays. */
	readonly isLastTerminal: boolean;
}

export interface Entry {
	readonly name: string;
	readonly held: Held;
	readonly isOptional: boolean;
	/** Types that may come by extension discovery, when the entry has no configuration of its own. */
	readonly discoverable: readonly string[];
}

export function readEntry(field: FieldReader, shape: EntryShape): Entry {
	const parts = field.message();
	let name = '';
	let held = nothingHeld;
	let isOptional = false;
	let discoverable: readonly string[] = [];
	while (parts.next()) {
		if (parts.number === 1) name = parts.string();
		else if (parts.number === shape.typedConfig) held = readAny(parts);
		else if (parts.number === shape.configDiscovery) discoverable = readDiscoverable(parts.message());
		else if (parts.number === shape.isOptional) isOptional = parts.bool();
	}
	return {name, held, isOptional, discoverable};
}

/** ExtensionConfigSource: type_urls 4. */
function readDiscoverable(field: FieldReader): string[] {
	const types: string[] = [];
	while (field.next()) if (field.number === 4) types.push(messageName(field.string()));
	return types;
}

/** Takes the entry in the current field out if this Envoy cannot load it and it may go. */
export function removeUnknown(surgery: Surgery, field: FieldReader, entry: Entry, shape: EntryShape): boolean {
	const types = entry.held.realType === '' ? entry.discoverable : [entry.held.realType];
	let lost: string | undefined;
	for (const type of types) {
		lost = surgery.policy.lostWithout(shape.category, type, entry.isOptional);
		// One of several types is enough to keep the entry: what comes by discovery is not decided here.
		if (lost === undefined) return false;
	}
	if (lost === undefined || (shape.isLastTerminal && !hasLater(field))) return false;
	surgery.edits.remove(field);
	noteRemoval(surgery, shape.category, entry.name, types.join(', '), lost);
	return true;
}
