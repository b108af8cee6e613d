import {resolve} from 'node:path';
import {ipFamily} from './ip.ts';
import type {AddressRule, Endpoint} from './types.ts';

/** A value as it stands in a source: text from flags and environment, and also a list or a map from YAML. */
export type Raw = string | readonly string[] | Readonly<Record<string, string>>;

/** Why a value was refused; anything else thrown by a parser is a bug. */
export class ValueError extends Error {}

/** How one kind of value is written outside and what it is inside. */
export interface ValueType<T> {
	readonly name: string;
	/** What a value looks like, for messages and help. */
	readonly accepts: string;
	readonly choices?: readonly string[];
	/** In YAML any tree; `parse` gets it as JSON, and so it is written elsewhere. */
	readonly isTree?: boolean;
	/** @param base - directory that relative paths start from. @throws ValueError */
	parse(raw: Raw, base: string): T;
}

function text<T>(name: string, accepts: string, parse: (value: string, base: string) => T): ValueType<T> {
	return {
		name,
		accepts,
		parse: (raw, base) => {
			if (typeof raw !== 'string') throw new ValueError(`a single value is needed (${accepts})`);
			if (raw.includes('\0')) throw new ValueError('holds a NUL byte');
			return parse(raw, base);
		},
	};
}

const nonEmpty = (value: string): string => {
	if (value.trim() === '') throw new ValueError('is empty');
	return value;
};

export const string = text('string', 'text', nonEmpty);
/** As string, but '' is a value. */
export const anyString = text('string', 'text', value => value);
/** Absolute inside. */
export const path = text('path', 'a path', (value, base) => resolve(base, nonEmpty(value)));

/** The socket address of the kernel holds 108 bytes, one of them the closing NUL (unix(7)). */
const longestSocketPath = 107;

export const socketPath = text('path', 'a path', (value, base) => {
	const absolute = resolve(base, nonEmpty(value));
	const length = Buffer.byteLength(absolute);
	if (length > longestSocketPath)
		throw new ValueError(`is ${length} bytes long, and the kernel takes socket paths of ${longestSocketPath} at most`);
	return absolute;
});

/** As strconv.ParseBool takes them, which Istio uses, in any case, and the words people write. */
const booleans = new Map<string, boolean>([
	...['1', 't', 'true', 'yes', 'on'].map(word => [word, true] as const),
	...['0', 'f', 'false', 'no', 'off'].map(word => [word, false] as const),
]);

export const boolean = text('boolean', 'true or false', value => {
	const known = booleans.get(value.toLowerCase());
	if (known === undefined) throw new ValueError('is neither true nor false');
	return known;
});

const millisecondsPer: Record<string, number> = {ns: 1e-6, us: 1e-3, µs: 1e-3, ms: 1, s: 1000, m: 60_000, h: 3_600_000};

/** 100 years; past that a number is a mistake, and sums with dates would overflow. */
const longestMs = 100 * 365 * 24 * 3_600_000;

/** Go's syntax, as Istio's own files have it: `10s`, `1h30m`, `500ms`. Milliseconds inside. */
export function parseDuration(value: string): number {
	const trimmed = value.trim();
	if (trimmed === '0') return 0;
	if (trimmed.length > 64 || !/^(?:\d+(?:\.\d+)?(?:ns|us|\u00b5s|ms|s|m|h))+$/.test(trimmed))
		throw new ValueError('is not a duration');
	let totalMs = 0;
	for (const [, amount, unit] of trimmed.matchAll(/(\d+(?:\.\d+)?)(ns|us|\u00b5s|ms|s|m|h)/g))
		totalMs += Number(amount) * millisecondsPer[unit!]!;
	if (totalMs > longestMs) throw new ValueError('is longer than 100 years');
	return Math.round(totalMs);
}

/** @param minMs - the shortest that makes sense */
export const duration = (minMs = 0): ValueType<number> =>
	text('duration', 'a duration such as 10s, 1h30m or 500ms', value => {
		const ms = parseDuration(value);
		if (ms < minMs) throw new ValueError(`is shorter than ${renderDuration(minMs)}`);
		return ms;
	});

/** The proto-JSON form: seconds. */
export const renderDuration = (ms: number): string => `${ms / 1000}s`;

const bytesPer: Record<string, number> = {
	'': 1,
	k: 1e3,
	ki: 2 ** 10,
	m: 1e6,
	mi: 2 ** 20,
	g: 1e9,
	gi: 2 ** 30,
};

export const bytes = text('bytes', 'a size such as 64MiB or 1000000', value => {
	const match = /^(\d{1,15})\s*([kmg]?i?)b?$/i.exec(value.trim());
	const unit = bytesPer[match?.[2]?.toLowerCase() ?? 'none'];
	if (!match || unit === undefined) throw new ValueError('is not a size');
	const total = Number(match[1]) * unit;
	if (total < 1 || !Number.isSafeInteger(total)) throw new ValueError('is out of range');
	return total;
});

export const integer = (min: number, max: number): ValueType<number> =>
	text('integer', `a whole number from ${min} to ${max}`, value => wholeNumber(value, min, max));

export const port = text('port', 'a port from 1 to 65535', value => wholeNumber(value, 1, 65_535));
export const portOrOff = text('port', 'a port from 1 to 65535, or 0 for none', value => wholeNumber(value, 0, 65_535));

function wholeNumber(value: string, min: number, max: number): number {
	if (!/^\d{1,16}$/.test(value.trim())) throw new ValueError('is not a whole number');
	const number = Number(value);
	if (number < min || number > max) throw new ValueError(`is not between ${min} and ${max}`);
	return number;
}

export const share = (min: number, max: number): ValueType<number> =>
	text('share', `a number from ${min} to ${max}`, value => {
		if (!/^\d{0,6}(?:\.\d{1,20})?$/.test(value.trim()) || value.trim() === '') throw new ValueError('is not a number');
		const number = Number(value);
		if (number < min || number > max) throw new ValueError(`is not between ${min} and ${max}`);
		return number;
	});

export const fileMode = text('mode', 'an octal file mode such as 0600', value => {
	if (!/^0?[0-7]{3}$/.test(value)) throw new ValueError('is not an octal file mode');
	return Number.parseInt(value, 8);
});

export function choice<const C extends string>(...choices: readonly C[]): ValueType<C> {
	const type = text('choice', `one of ${choices.join(', ')}`, value => {
		const known = choices.find(candidate => candidate === value);
		if (known === undefined) throw new ValueError(`is none of ${choices.join(', ')}`);
		return known;
	});
	return {...type, choices};
}

export const ipAddress = text('address', 'an IP address', value => {
	const bare = value.trim();
	if (ipFamily(bare) === 0) throw new ValueError('is not an IP address');
	return bare.toLowerCase();
});

/** A server open to the network would answer, and amplify, for anybody. */
const loopback = text('address', 'a loopback address', value => {
	const address = ipAddress.parse(value, '/');
	if (address !== '::1' && !address.startsWith('127.')) throw new ValueError('is not a loopback address');
	return address;
});

/** `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`; a link-local address has its interface behind a `%`. */
const nameServer = text('server', 'ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT', value => {
	const bare = value.trim().toLowerCase();
	const isAddress = (address: string) => ipFamily(address.replace(/%[-\w.]+$/, '')) !== 0;
	if (isAddress(bare)) return {address: bare, port: 53};
	const match = /^(?:\[([^\]]+)\]|([0-9.]+)):(\d{1,5})$/.exec(bare);
	const address = match?.[1] ?? match?.[2] ?? '';
	if (!match || !isAddress(address)) throw new ValueError('is not an IP address, with or without a port');
	return {address, port: wholeNumber(match[3]!, 1, 65_535)};
});

/** The names that Kubernetes gives out and SPIFFE IDs are made of (RFC 1123). */
export const dnsLabel = text('name', 'lower-case letters, digits and "-", at most 63', value => {
	if (!/^[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?$/.test(value))
		throw new ValueError('is not a name that Kubernetes gives (lower-case letters, digits and "-", at most 63)');
	return value;
});

export const dnsName = text('name', 'lower-case letters, digits, "-" and ".", at most 253', value => {
	if (value.length > 253 || !/^[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*$/.test(value))
		throw new ValueError('is not a DNS name (lower-case letters, digits, "-" and ".", at most 253)');
	return value;
});

/** One part of Envoy's node id, which is split at `~`, or a name that ends in it. */
export const nodeName = text('name', 'text without spaces, "~" or "/"', value => {
	if (!/^[\x21-\x7e]{1,253}$/.test(value) || /[~/]/.test(value))
		throw new ValueError('cannot be part of a node id (no spaces, "~" or "/", at most 253 characters)');
	return value;
});

const listOf = <T>(name: string, item: ValueType<T>, min = 0): ValueType<readonly T[]> => ({
	name,
	accepts: `${item.accepts}; several are separated by commas`,
	parse: (raw, base) => {
		if (typeof raw !== 'string' && !Array.isArray(raw)) throw new ValueError('a list is needed');
		const items: readonly string[] = typeof raw === 'string' ? raw.split(',') : (raw as readonly string[]);
		const trimmed = items.map(entry => entry.trim()).filter(entry => entry !== '');
		if (trimmed.length < min) throw new ValueError('is empty');
		return trimmed.map(entry => item.parse(entry, base));
	},
});

export const loopbacks = listOf('list', loopback, 1);
export const nameServers = listOf('list', nameServer);

/** `none`, or names; a dot at the end is left out. */
export const domains: ValueType<readonly string[]> = {
	name: 'list',
	accepts: 'domains separated by commas, or none',
	parse: (raw, base) =>
		raw === 'none'
			? []
			: listOf('list', dnsName, 1)
					.parse(raw, base)
					.map(name => name.toLowerCase()),
};

export const strings = listOf('list', anyString);

/** A program by its whole path, since services have a PATH of their own; and its arguments. Nothing is no program. */
export const command: ValueType<readonly string[]> = {
	...strings,
	name: 'command',
	accepts: '/PATH/TO/PROGRAM and its arguments, as a list; separated by commas where lists cannot be written',
	parse: (raw, base) => {
		const words = strings.parse(raw, base);
		if (words.length > 0 && !words[0]!.startsWith('/'))
			throw new ValueError('does not begin with the path of a program');
		return words;
	},
};

export const ports = listOf('ports', port);

/** `*`, or a list; nothing is an empty list. */
const allOr = <T>(list: ValueType<readonly T[]>): ValueType<'*' | readonly T[]> => ({
	name: list.name,
	accepts: `* for all, or ${list.accepts}`,
	parse: (raw, base) =>
		raw === '*' || (Array.isArray(raw) && raw.length === 1 && raw[0] === '*') ? '*' : list.parse(raw, base),
});

export const portsOrAll = allOr(ports);

/** With the bits behind the prefix cleared, as the kernel shows it. */
export const cidr = text('network', 'a network such as 10.0.0.0/8 or fd00::/8', parseCidr);
export const cidrs = listOf('networks', cidr);
export const cidrsOrAll = allOr(cidrs);

/** @throws ValueError */
export function parseCidr(value: string): string {
	const [address = '', digits, ...rest] = value.trim().split('/');
	const version = ipFamily(address);
	if (version === 0 || rest.length > 0) throw new ValueError('is not a network');
	const bits = version === 4 ? 32 : 128;
	const prefix = digits === undefined ? bits : wholeNumber(digits, 0, bits);
	if (prefix === 0) throw new ValueError('means everything: write *');
	return `${maskAddress(address, prefix)}/${prefix}`;
}

function maskAddress(address: string, prefix: number): string {
	const isV4 = ipFamily(address) === 4;
	const [size, count, radix] = isV4 ? [8, 4, 10] : [16, 8, 16];
	const groups = isV4 ? address.split('.').map(Number) : expandIpv6(address);
	const masked = groups.map((group, i) => {
		const kept = Math.min(Math.max(prefix - i * size, 0), size);
		return group & (((1 << kept) - 1) << (size - kept));
	});
	if (masked.length !== count) throw new ValueError('is not a network');
	const text = masked.map(group => group.toString(radix)).join(isV4 ? '.' : ':');
	return isV4 ? text : new URL(`http://[${text}]`).hostname.slice(1, -1);
}

function expandIpv6(address: string): number[] {
	// The URL parser writes an embedded IPv4 address in hexadecimal, and everything in lower case.
	const canonical = new URL(`http://[${address}]`).hostname.slice(1, -1);
	const [head = '', tail] = canonical.split('::');
	const groups = (part: string): number[] =>
		part === '' ? [] : part.split(':').map(group => Number.parseInt(group, 16));
	if (tail === undefined) return groups(head);
	const [left, right] = [groups(head), groups(tail)];
	return [...left, ...Array.from({length: 8 - left.length - right.length}, () => 0), ...right];
}

/** As Istio checks it: a part of 127.0.0.0/8. */
export const loopbackCidr = text('network', 'a part of 127.0.0.0/8', value => {
	const parsed = parseCidr(value);
	if (!parsed.startsWith('127.') || Number(parsed.split('/')[1]) < 8)
		throw new ValueError('is not a part of 127.0.0.0/8');
	return parsed;
});

/** As the kernel takes them (dev_valid_name), without what would end a word in a rule. */
const interfaceName = text('interface', 'the name of a network interface, or its beginning and *', value => {
	if (!/^[A-Za-z0-9_.@:-]{1,15}\*?$/.test(value) || value.length > 15 || value === '.' || value === '..')
		throw new ValueError('is not the name of an interface');
	return value;
});
export const interfaces = listOf('interfaces', interfaceName);

const addressRule = text('rule', 'route, interface:NAME, cidr:NETWORK or metadata', (value, base): AddressRule => {
	const [kind, rest = ''] = [value.split(':', 1)[0], value.slice(value.indexOf(':') + 1)];
	if (value === 'route' || value === 'metadata') return {kind: value};
	if (kind === 'interface' && value.includes(':')) return {kind, name: interfaceName.parse(rest, base)};
	if (kind === 'cidr' && value.includes(':')) return {kind, cidr: parseCidr(rest)};
	throw new ValueError('is none of route, interface:NAME, cidr:NETWORK, metadata');
});
export const addressRules = listOf('rules', addressRule, 1);

const owner = text('owner', 'a name or a number', value => {
	if (!/^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?$/.test(value)) throw new ValueError('is neither a name nor a number');
	return value;
});
export const owners = listOf('owners', owner);
export const someOwners = listOf('owners', owner, 1);
export const ownersOrAll = allOr(owners);

const unit = text(
	'unit',
	'a systemd unit such as app.service, or a control group such as system.slice/app.service',
	value => {
		const path = value.replace(/^\/+|\/+$/g, '');
		if (!/^[A-Za-z0-9_.@:\\/-]{1,255}$/.test(path) || path.split('/').some(part => part === '..' || part === ''))
			throw new ValueError('is neither a unit nor a control group');
		return path;
	},
);
export const units = listOf('units', unit);

const probe = text('probe', 'tcp://HOST:PORT or dns:NAME', value => {
	if (!/^(?:tcp:\/\/(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):\d{1,5}|dns:[A-Za-z0-9_.-]{1,253})$/.test(value))
		throw new ValueError('is not a probe');
	return value;
});
export const probes = listOf('probes', probe);

const endpoint = text('endpoint', 'host:port, or http://host:port for no TLS', parseEndpoint);
export const endpoints = listOf('endpoints', endpoint, 1);

/** Istio's port without TLS. */
const plaintextPort = 15_010;

/** `host:port` or `[v6]:port`; `http://` in front, or port 15010, means no TLS. @throws ValueError */
export function parseEndpoint(value: string): Endpoint {
	const match = /^(?:(https?):\/\/)?(?:\[([^\]]*)\]|([^:/[\]]*))(?::(\d{1,5}))?\/?$/.exec(value.trim());
	if (!match)
		throw new ValueError(`is not host:port${value.split(':').length > 2 ? ' (an IPv6 address needs brackets)' : ''}`);
	const [, scheme, v6, name, digits] = match;
	const host = (v6 ?? name ?? '').toLowerCase();
	if (v6 !== undefined && ipFamily(v6) !== 6) throw new ValueError('holds no IPv6 address between its brackets');
	if (v6 === undefined && !/^[a-z0-9_](?:[-a-z0-9_.]{0,252})$/.test(host))
		throw new ValueError('has no valid host name');
	if (digits === undefined) throw new ValueError('has no port (istiod listens at 15012)');
	const portNumber = wholeNumber(digits, 1, 65_535);
	return {
		host,
		port: portNumber,
		isPlaintext: scheme === 'http' || (scheme === undefined && portNumber === plaintextPort),
	};
}

export const httpsUrl = text('url', 'https://HOST, with a port if it is not 443', value => {
	const url = URL.canParse(value) ? new URL(value) : undefined;
	if (url?.protocol !== 'https:') throw new ValueError('is not a URL that begins with https://');
	if (url.username || url.password || url.search || url.hash)
		throw new ValueError('is more than scheme, host and path');
	return url.href.replace(/\/$/, '');
});

/** What is asked there must not leave this machine and its host. */
export const metadataEndpoint = text('url', 'http:// and a link-local or loopback address', value => {
	const match =
		/^http:\/\/(?:(169\.254\.\d{1,3}\.\d{1,3}|127\.\d{1,3}\.\d{1,3}\.\d{1,3})|\[(fe80::[0-9a-f:]+|fd00:ec2::254|::1)\])(?::(\d{1,5}))?\/?$/.exec(
			value,
		);
	if (!match || ipFamily(match[1] ?? match[2] ?? '') === 0)
		throw new ValueError('is not a link-local or loopback address');
	if (match[3] !== undefined) wholeNumber(match[3], 1, 65_535);
	return value.replace(/\/$/, '');
});

/** `SYSTEM` or a file. */
export const trustAnchor = text('anchor', 'a PEM file, or SYSTEM for the roots of this machine', (value, base) =>
	value === 'SYSTEM' ? ({kind: 'system'} as const) : ({kind: 'file', path: resolve(base, nonEmpty(value))} as const),
);

/** `PORT/PATH`, where the path may be left out. */
export const scrapeTargets = listOf(
	'list',
	text('target', 'PORT/PATH such as 8080/metrics', value => {
		const match = /^(\d{1,5})(\/[\x21-\x7e]*)?$/.exec(value);
		if (!match) throw new ValueError('is not PORT/PATH');
		return {port: wholeNumber(match[1]!, 1, 65_535), path: match[2] ?? '/metrics'};
	}),
);

/** `a=b,c=d`, or a map in YAML. */
export const pairs: ValueType<Readonly<Record<string, string>>> = {
	name: 'pairs',
	accepts: 'NAME=VALUE; several are separated by commas',
	parse: raw => {
		if (Array.isArray(raw)) throw new ValueError('a map is needed');
		if (typeof raw !== 'string') return raw as Readonly<Record<string, string>>;
		const entries = raw.split(',').filter(entry => entry.trim() !== '');
		return Object.fromEntries(
			entries.map(entry => {
				const split = entry.indexOf('=');
				if (split < 1) throw new ValueError('is not NAME=VALUE');
				return [entry.slice(0, split).trim(), entry.slice(split + 1).trim()];
			}),
		);
	},
};

/** What gRPC takes as metadata names; `grpc-` is its own and `-bin` would need base64. */
export const headers: ValueType<Readonly<Record<string, string>>> = {
	...pairs,
	name: 'headers',
	parse: (raw, base) => {
		const lower = Object.entries(pairs.parse(raw, base)).map(([name, value]) => [name.toLowerCase(), value] as const);
		for (const [name, value] of lower) checkHeader(name, value);
		return Object.fromEntries(lower);
	},
};

/** @throws ValueError, which never holds the value: headers carry credentials */
export function checkHeader(name: string, value: string): void {
	if (!/^[-_.0-9a-z]+$/.test(name) || name.startsWith('grpc-') || name.endsWith('-bin'))
		throw new ValueError(`"${name}" is not a usable header name`);
	if (!/^[\x20-\x7e]*$/.test(value))
		throw new ValueError(`the value of header "${name}" has characters other than printable ASCII`);
}

/** Host name → addresses; several addresses of one name are separated by spaces. */
export const hosts: ValueType<Readonly<Record<string, readonly string[]>>> = {
	...pairs,
	accepts: 'NAME=ADDRESS; several are separated by commas',
	parse: (raw, base) =>
		Object.fromEntries(
			Object.entries(pairs.parse(raw, base)).map(([name, value]) => [
				name.toLowerCase(),
				value.split(/\s+/).map(address => ipAddress.parse(address, base)),
			]),
		),
};
