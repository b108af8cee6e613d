import {isIPv6} from 'node:net';
import type {DnsConfig} from '../config/types.ts';

export const renderAddress = (address: string, port: number): string =>
	`${isIPv6(address) ? `[${address}]` : address}:${port}`;

/** Where the control plane is told that the server is: the first address. */
export const dnsAddressOf = ({addresses, port}: Pick<DnsConfig, 'addresses' | 'port'>): string =>
	renderAddress(addresses[0]!, port);
