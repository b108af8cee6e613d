import {isIP} from 'node:net';
import {FieldReader} from '../proto/wire.ts';
import {encodeName} from './message.ts';

/** What the mesh knows of one host name. */
export interface NameInfo {
	/** Never empty. */
	readonly addresses: readonly string[];
	/** `Kubernetes`, `External`, … */
	readonly registry: string;
	readonly shortName: string;
	readonly namespace: string;
	/** Further names, as older control planes list them. */
	readonly otherNames: readonly string[];
}

/** Host name in lower case → what the mesh knows of it. */
export type NameTable = ReadonlyMap<string, NameInfo>;

/** A name table that would fill the memory is a mistake or worse; 1,000,000 names of 100 bytes. */
export const largestTable = 128 * 2 ** 20;

/**
 * Reads istio.networking.nds.v1.NameTable: table 1 = map entry {key 1, value 2 NameInfo {ips 1, registry 2,
 * shortname 3, namespace 4, alt_hosts 5}}. Entries that are no host name could not be asked for, and services without
 * an address are found in the DNS of the world: both are left out.
 * @throws WireError
 */
export function parseNameTable(message: Buffer): NameTable {
	const table = new Map<string, NameInfo>();
	const kept = new Map<string, string>();
	// Thousands of hosts have the same few; a string each would be most of the memory.
	const keep = (text: string): string => {
		if (!kept.has(text)) kept.set(text, text);
		return kept.get(text)!;
	};
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number !== 1) continue;
		let host = '';
		let info: NameInfo | undefined;
		for (const entry = field.message(); entry.next(); ) {
			if (entry.number === 1) host = entry.string().toLowerCase();
			else if (entry.number === 2) info = parseNameInfo(entry.message(), keep);
		}
		if (info && info.addresses.length > 0 && encodeName(host) !== undefined) table.set(host, info);
	}
	return table;
}

const none: readonly string[] = [];

function parseNameInfo(field: FieldReader, keep: (text: string) => string): NameInfo {
	const addresses: string[] = [];
	const otherNames: string[] = [];
	let [registry, shortName, namespace] = ['', '', ''];
	while (field.next()) {
		if (field.number === 1) {
			const address = field.string();
			if (isIP(address) && !address.includes('%')) addresses.push(address);
		} else if (field.number === 2) registry = keep(field.string());
		else if (field.number === 3) shortName = field.string();
		else if (field.number === 4) namespace = keep(field.string());
		else if (field.number === 5) otherNames.push(field.string());
	}
	return {addresses, registry, shortName, namespace, otherNames: otherNames.length > 0 ? otherNames : none};
}
