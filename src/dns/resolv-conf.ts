import {isIP} from 'node:net';
import {encodeName} from './message.ts';

export interface ResolvConf {
	/** Addresses, in order; a link-local one with its interface (`fe80::1%eth0`). */
	readonly servers: readonly string[];
	/** As on the wire, without the root's domain. */
	readonly search: readonly string[];
	/** Share questions out among the servers. */
	readonly isRotating: boolean;
	/** Ask over TCP always. */
	readonly isTcpOnly: boolean;
}

/** The C library takes three servers; more are not asked by anybody else either, but cost nothing. */
const mostServers = 8;
const mostSearch = 32;

/**
 * Reads /etc/resolv.conf as the C library does (resolv.conf(5)): the keyword at the start of a line, the last of
 * `domain` and `search` counts, no server at all means the one on this machine. What is not understood is left out,
 * and so is `timeout`, whole seconds: the next server is asked much sooner anyway.
 */
export function parseResolvConf(text: string): ResolvConf {
	const servers: string[] = [];
	let search: string[] = [];
	let isRotating = false;
	let isTcpOnly = false;
	for (const line of text.split('\n')) {
		const [keyword, ...words] = line
			.replace(/[#;].*$/, '')
			.trimEnd()
			.split(/[ \t\r]+/);
		if (keyword === 'nameserver') {
			const [address = ''] = words;
			if (isIP(address) && !servers.includes(address) && servers.length < mostServers) servers.push(address);
		} else if (keyword === 'search' || keyword === 'domain') {
			const names = (keyword === 'domain' ? words.slice(0, 1) : words).map(encodeName);
			search = names.filter((name): name is string => name !== undefined && name !== '\0').slice(0, mostSearch);
		} else if (keyword === 'options') {
			for (const option of words) {
				if (option === 'rotate') isRotating = true;
				else if (option === 'use-vc') isTcpOnly = true;
			}
		}
	}
	return {servers: servers.length > 0 ? servers : ['127.0.0.1'], search, isRotating, isTcpOnly};
}
