import {SocketAddress} from 'node:net';

/**
 * 4, 6, or 0 for what is no IP address; one with a zone (`fe80::1%eth0`) is none. The kernel's own parser decides:
 * `net.isIP` compiles a regular expression first, which takes longer than reading a whole bundle.
 */
export function ipFamily(text: string): 0 | 4 | 6 {
	// The parser leaves out a zone without a word.
	if (text.includes('%')) return 0;
	const isV6 = text.includes(':');
	try {
		new SocketAddress({address: text, family: isV6 ? 'ipv6' : 'ipv4'});
		return isV6 ? 6 : 4;
	} catch {
		return 0;
	}
}
