import type {MonitorCommand} from '../lifecycle/monitor.ts';

/** What tells of changes as they happen: of nftables, what iptables-nft does included, and of what stands beside it. */
export const captureMonitors: readonly MonitorCommand[] = [
	['nft', 'monitor'],
	['ip', 'monitor', 'address', 'rule'],
];
