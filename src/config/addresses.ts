import type {NetworkInterfaceInfo} from 'node:os';

/** As os.networkInterfaces() gives it. */
export type Interfaces = Readonly<Record<string, readonly NetworkInterfaceInfo[] | undefined>>;

/** Bridges, container links and tunnels: no peer outside this machine, or its own overlay, can reach us by them. */
const virtualName = /^(?:docker|br-|virbr|cni|veth|podman|lxcbr|lxdbr|cali|flannel|vnet|tun|tap|wg|tailscale)/;

/**
 * The addresses of this host, best first. The first names our WorkloadEntry, so the order depends on names and
 * numbers only, never on the order in which the kernel brought interfaces up: IPv4 before IPv6, virtual
 * interfaces last. `127.0.0.1` when there is none.
 * @param explicit - goes first, wherever it comes from
 */
export function selectAddresses(interfaces: Interfaces, explicit: string | undefined): readonly [string, ...string[]] {
	const found = Object.entries(interfaces).flatMap(([name, infos]) =>
		(infos ?? [])
			.filter(isUsable)
			.map(({address, family}) => ({name, address, family, isVirtual: virtualName.test(name)})),
	);
	const sorted = found
		.toSorted(
			(left, right) =>
				Number(left.isVirtual) - Number(right.isVirtual) ||
				compare(String(left.family), String(right.family)) ||
				compare(left.name, right.name) ||
				compare(left.address, right.address),
		)
		.map(({address}) => address);
	const [first, ...rest] = new Set(explicit === undefined ? sorted : [explicit, ...sorted]);
	return [first ?? '127.0.0.1', ...rest];
}

function isUsable({address, internal}: NetworkInterfaceInfo): boolean {
	return !internal && !/^(?:127\.|169\.254\.|0\.0\.0\.0$|fe[89ab][0-9a-f]:|::1?$)/i.test(address);
}

/** `eth2` before `eth10`: digits count as numbers. A collator would do the same, and takes 7 ms to load. */
function compare(left: string, right: string): number {
	const [lefts, rights] = [left.split(/(\d+)/), right.split(/(\d+)/)];
	for (const [i, part] of lefts.entries()) {
		const other = rights[i] ?? '';
		// Every second part is a number.
		if (i % 2 === 1 && other !== '' && Number(part) !== Number(other)) return Number(part) - Number(other);
		if (part !== other) return part < other ? -1 : 1;
	}
	return lefts.length - rights.length;
}
