import {ipFamily} from './ip.ts';
import {type FileFindings, show} from './problems.ts';

/**
 * Reads the bundle's `hosts` (the format of hosts(5)): host name → addresses, in order. An empty file is fine; it is
 * what istioctl writes when it found no ingress address.
 */
export function parseHosts(text: string, findings: FileFindings): ReadonlyMap<string, readonly string[]> {
	const hosts = new Map<string, Set<string>>();
	for (const [index, line] of text.split('\n').entries()) {
		const [address, ...names] = line.replace(/#.*/, '').trim().split(/\s+/);
		if (!address || findings.isFull) continue;
		if (ipFamily(address) === 0 || names.length === 0) {
			findings.problem(
				index + 1,
				`${show(line.trim())} is not "ADDRESS NAME"`,
				'write an IP address, then the host names it stands for',
			);
			continue;
		}
		for (const name of names) {
			const known = hosts.get(name.toLowerCase());
			if (known) known.add(address);
			else hosts.set(name.toLowerCase(), new Set([address]));
		}
	}
	return new Map([...hosts].map(([name, addresses]) => [name, [...addresses]]));
}
