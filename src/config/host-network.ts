import {createSocket} from 'node:dgram';
import {readFileSync} from 'node:fs';
import {networkInterfaces} from 'node:os';
import type {Interfaces} from './addresses.ts';

/** This machine's addresses as the kernel has them now. */
export interface HostNetwork {
	readonly interfaces: Interfaces;
	/** IPv6 address → its flags in hexadecimal text of /proc/net/if_inet6; asked for only where there is IPv6. */
	readonly ipv6Flags?: () => ReadonlyMap<string, number>;
	/** The address that packets to this one would be sent from; undefined without a route. Sends nothing. */
	readonly sourceOf?: (destination: string) => string | undefined;
	/** The address that the cloud's metadata service has named; undefined while it has not. */
	readonly cloudAddress?: () => string | undefined;
}

export const lookAtNetwork = (): HostNetwork => ({interfaces: networkInterfaces(), ipv6Flags: readFlags, sourceOf});

function readFlags(): ReadonlyMap<string, number> {
	try {
		return parseFlags(readFileSync('/proc/net/if_inet6', 'latin1'));
	} catch {
		// A machine without IPv6 has no such file, and no address that would be looked for in it.
		return new Map();
	}
}

/** Lines of `ADDRESS INDEX PREFIX SCOPE FLAGS NAME`, all hexadecimal but the name. */
export function parseFlags(text: string): ReadonlyMap<string, number> {
	const found = new Map<string, number>();
	for (const line of text.split('\n')) {
		const [digits = '', , , , flags = ''] = line.trim().split(/\s+/);
		if (!/^[0-9a-f]{32}$/.test(digits)) continue;
		const address = new URL(`http://[${digits.match(/.{4}/g)!.join(':')}]`).hostname.slice(1, -1);
		found.set(address, Number.parseInt(flags, 16));
	}
	return found;
}

/** Connecting a UDP socket makes the kernel choose route and source, and nothing else. */
function sourceOf(destination: string): string | undefined {
	const family = destination.includes(':') ? 6 : 4;
	const socket = createSocket({
		type: `udp${family}`,
		// At once: a look-up would answer in a later turn.
		lookup: (host, _, done) => done(null, host, family),
	});
	socket.on('error', () => {}); // No route: told by the address that is not there.
	try {
		socket.connect(9, destination);
		const {address} = socket.address();
		return address === '0.0.0.0' || address === '::' ? undefined : address;
	} catch {
		return undefined;
	} finally {
		socket.close();
	}
}
