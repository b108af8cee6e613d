import {type Kernel, routeProtocol} from './kernel.ts';
import {mustRun, type Run} from './programs.ts';
import {type Family, families, type HostState} from './rules.ts';

/** Of our address, which it marks, and of our route: harmless, as lo has no other way to the one, nor the table to go. */
const ownMetric = 60_015;
const passThroughAddress = '::6/128';

const flag: Readonly<Record<Family, string>> = {ip: '-4', ip6: '-6'};

export interface LiveHostState {
	readonly rules: readonly {
		readonly family: Family;
		readonly mark: number;
		readonly table: number;
		readonly priority: number;
	}[];
	readonly routes: readonly {readonly family: Family; readonly table: number}[];
	readonly hasPassThroughAddress: boolean;
	/** By somebody else: then it is not ours to remove. */
	readonly hasForeignAddress: boolean;
}

/** What is ours of routing and addresses, by our marks, whatever today's settings are. */
export async function readHostState(kernel: Kernel): Promise<LiveHostState> {
	const rules: {family: Family; mark: number; table: number; priority: number}[] = [];
	const routes: {family: Family; table: number}[] = [];
	let address: Readonly<Record<string, unknown>> | undefined;
	for (const family of families)
		for (const entry of (await kernel.ip(family)) ?? []) {
			if ('priority' in entry && String(entry['protocol']) === String(routeProtocol))
				rules.push({
					family,
					mark: Number(entry['fwmark']),
					table: Number(entry['table']),
					priority: Number(entry['priority']),
				});
			// Routes of other tables are shown only if they are ours.
			else if ('dst' in entry && 'table' in entry) routes.push({family, table: Number(entry['table'])});
			else if (entry['ifname'] === 'lo')
				address ??= (entry['addr_info'] as readonly Readonly<Record<string, unknown>>[] | undefined)?.find(
					each => each['local'] === '::6',
				);
		}
	const isOurs = address !== undefined && Number(address['metric']) === ownMetric;
	return {rules, routes, hasPassThroughAddress: isOurs, hasForeignAddress: address !== undefined && !isOurs};
}

/** Adds what is missing. Before the rules: without it they would lead packets nowhere. */
export async function addHostState(run: Run, live: LiveHostState, wanted: HostState): Promise<void> {
	if (wanted.hasPassThroughAddress && !live.hasPassThroughAddress && !live.hasForeignAddress)
		await mustRun(run, 'ip', ['-6', 'addr', 'add', passThroughAddress, 'dev', 'lo', 'metric', String(ownMetric)]);
	const {policyRouting} = wanted;
	if (!policyRouting) return;
	const {mark, table} = policyRouting;
	for (const family of wanted.families) {
		if (!live.routes.some(route => route.family === family && route.table === table))
			await mustRun(run, 'ip', [
				...[flag[family], 'route', 'add', 'local', family === 'ip' ? '0.0.0.0/0' : '::/0', 'dev', 'lo'],
				// A metric of its own, so that it has its place beside the one that Istio's tool leaves in the same table for ever.
				...['table', String(table), 'proto', String(routeProtocol), 'metric', String(ownMetric)],
			]);
		if (!live.rules.some(rule => rule.family === family && rule.table === table && rule.mark === mark))
			await mustRun(run, 'ip', [
				...[flag[family], 'rule', 'add', 'fwmark', String(mark), 'lookup', String(table)],
				...['protocol', String(routeProtocol)],
			]);
	}
}

/** Which of what is ours stays. */
export interface Kept {
	rule(family: Family, table: number, mark: number): boolean;
	route(family: Family, table: number): boolean;
	readonly hasPassThroughAddress: boolean;
}

export function keepWanted(wanted: HostState | undefined): Kept {
	const routing = wanted?.policyRouting;
	const route = (family: Family, table: number) =>
		wanted?.families.includes(family) === true && routing?.table === table;
	return {
		route,
		rule: (family, table, mark) => route(family, table) && routing?.mark === mark,
		hasPassThroughAddress: wanted?.hasPassThroughAddress === true,
	};
}

export const keepLive = ({rules, routes, hasPassThroughAddress}: LiveHostState): Kept => ({
	rule: (family, table, mark) =>
		rules.some(each => each.family === family && each.table === table && each.mark === mark),
	route: (family, table) => routes.some(each => each.family === family && each.table === table),
	hasPassThroughAddress,
});

/** Takes away what is ours and no longer wanted. After the rules: nothing leads there any more. */
export async function removeHostState(run: Run, live: LiveHostState, kept: Kept): Promise<void> {
	for (const {family, priority, mark, table} of live.rules)
		if (!kept.rule(family, table, mark))
			await mustRun(run, 'ip', [
				...[flag[family], 'rule', 'del', 'pref', String(priority), 'fwmark', String(mark)],
				...['lookup', String(table), 'protocol', String(routeProtocol)],
			]);
	for (const {family, table} of live.routes)
		if (!kept.route(family, table))
			await mustRun(run, 'ip', [
				...[flag[family], 'route', 'del', 'local', family === 'ip' ? '0.0.0.0/0' : '::/0', 'dev', 'lo'],
				...['table', String(table), 'proto', String(routeProtocol)],
			]);
	if (live.hasPassThroughAddress && !kept.hasPassThroughAddress)
		await mustRun(run, 'ip', ['-6', 'addr', 'del', passThroughAddress, 'dev', 'lo']);
}

/** What is wanted and not there, in words. */
export function missingHostState(wanted: HostState, live: LiveHostState): string[] {
	const missing: string[] = [];
	if (wanted.hasPassThroughAddress && !live.hasPassThroughAddress && !live.hasForeignAddress)
		missing.push('::6 is not an address of lo');
	const {policyRouting} = wanted;
	if (!policyRouting) return missing;
	for (const family of wanted.families) {
		if (
			!live.rules.some(
				rule => rule.family === family && rule.table === policyRouting.table && rule.mark === policyRouting.mark,
			)
		)
			missing.push(`no policy rule leads mark ${policyRouting.mark} to table ${policyRouting.table} (${family})`);
		if (!live.routes.some(route => route.family === family && route.table === policyRouting.table))
			missing.push(`routing table ${policyRouting.table} has no local default route (${family})`);
	}
	return missing;
}
