import {isIP} from 'node:net';
import {FieldReader} from '../proto/wire.ts';

/** What the mesh knows of one host name. */
export interface NameInfo {
	readonly addresses: readonly string[];
	/** `Kubernetes`, `External`, … */
	readonly registry: string;
	readonly shortName: string;
	readonly namespace: string;
}

/** Host name in lower case → what the mesh knows of it. */
export type NameTable = ReadonlyMap<string, NameInfo>;

/**
 * Reads istio.networking.nds.v1.NameTable: table 1 = map entry {key 1, value 2 NameInfo {ips 1, registry 2,
 * shortname 3, namespace 4}}. Entries that are no host name or no address are left out, since they could only be
 * answered wrongly.
 * @throws WireError
 */
export function parseNameTable(message: Buffer): NameTable {
	const table = new Map<string, NameInfo>();
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number !== 1) continue;
		let host = '';
		let info: NameInfo | undefined;
		for (const entry = field.message(); entry.next(); ) {
			if (entry.number === 1) host = entry.string().toLowerCase();
			else if (entry.number === 2) info = parseNameInfo(entry.message());
		}
		if (isHostName(host) && info) table.set(host, info);
	}
	return table;
}

function parseNameInfo(field: FieldReader): NameInfo {
	const addresses: string[] = [];
	let [registry, shortName, namespace] = ['', '', ''];
	while (field.next()) {
		if (field.number === 1) {
			const address = field.string();
			if (isIP(address)) addresses.push(address);
		} else if (field.number === 2) registry = field.string();
		else if (field.number === 3) shortName = field.string();
		else if (field.number === 4) namespace = field.string();
	}
	return {addresses, registry, shortName, namespace};
}

/** A DNS name: labels of 1 to 63 bytes, 253 in all; a leading `*.` is a wildcard (RFC 1035, section 2.3.4). */
function isHostName(host: string): boolean {
	return (
		host.length > 0 &&
		host.length <= 253 &&
		host.split('.').every(label => label.length > 0 && label.length <= 63 && !/[\s\x00-\x1f]/.test(label))
	);
}
