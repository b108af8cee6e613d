import {mustRun, type Run} from './programs.ts';
import {type Family, families, type HostState} from './rules.ts';

/** Marks our rule and route among others, shown by `ip rule` and `ip route`; free in /etc/iproute2/rt_protos. */
const routeProtocol = 111;
/** Marks our address: shown by `ip addr`, and harmless, as lo has no other way to it. */
const addressMetric = 60_015;
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
export async function readHostState(run: Run): Promise<LiveHostState> {
	const perFamily = await Promise.all(
		families.map(async family => {
			const [shownRules, shownRoutes] = await Promise.all([
				list(run, [flag[family], '-j', 'rule', 'show']),
				list(run, [flag[family], '-j', 'route', 'show', 'table', 'all', 'proto', String(routeProtocol)]),
			]);
			return {
				rules: shownRules
					.filter(rule => String(rule['protocol']) === String(routeProtocol))
					.map(rule => ({
						family,
						mark: Number(rule['fwmark']),
						table: Number(rule['table']),
						priority: Number(rule['priority']),
					})),
				routes: shownRoutes.map(route => ({family, table: Number(route['table'])})),
			};
		}),
	);
	const rules = perFamily.flatMap(each => each.rules);
	const routes = perFamily.flatMap(each => each.routes);
	const addresses = (await list(run, ['-6', '-j', 'addr', 'show', 'dev', 'lo'])).flatMap(
		device => (device['addr_info'] as readonly Record<string, unknown>[] | undefined) ?? [],
	);
	const address = addresses.find(each => each['local'] === '::6');
	const isOurs = address !== undefined && Number(address['metric']) === addressMetric;
	return {
		rules,
		routes,
		hasPassThroughAddress: isOurs,
		hasForeignAddress: address !== undefined && !isOurs,
	};
}

/** Some questions fail on a kernel without that family; then it has nothing of ours. */
async function list(run: Run, args: readonly string[]): Promise<readonly Record<string, unknown>[]> {
	const {code, stdout} = await run('ip', args);
	if (code !== 0 || stdout.trim() === '') return [];
	return (JSON.parse(stdout) as readonly Record<string, unknown>[]).filter(entry => Object.keys(entry).length > 0);
}

/** Adds what is missing. Before the rules: without it they would lead packets nowhere. */
export async function addHostState(run: Run, wanted: HostState): Promise<void> {
	const live = await readHostState(run);
	if (wanted.hasPassThroughAddress && !live.hasPassThroughAddress && !live.hasForeignAddress)
		await mustRun(run, 'ip', ['-6', 'addr', 'add', passThroughAddress, 'dev', 'lo', 'metric', String(addressMetric)]);
	const {policyRouting} = wanted;
	if (!policyRouting) return;
	const {mark, table} = policyRouting;
	for (const family of wanted.families) {
		if (!live.routes.some(route => route.family === family && route.table === table))
			await mustRun(run, 'ip', [
				...[flag[family], 'route', 'add', 'local', family === 'ip' ? '0.0.0.0/0' : '::/0', 'dev', 'lo'],
				...['table', String(table), 'proto', String(routeProtocol)],
			]);
		if (!live.rules.some(rule => rule.family === family && rule.table === table && rule.mark === mark))
			await mustRun(run, 'ip', [
				...[flag[family], 'rule', 'add', 'fwmark', String(mark), 'lookup', String(table)],
				...['protocol', String(routeProtocol)],
			]);
	}
}

/** Takes away what is ours and no longer wanted. After the rules: nothing leads there any more. */
export async function removeHostState(run: Run, wanted: HostState | undefined): Promise<void> {
	const live = await readHostState(run);
	const isWanted = (family: Family, table: number, mark?: number): boolean =>
		wanted?.policyRouting !== undefined &&
		wanted.families.includes(family) &&
		wanted.policyRouting.table === table &&
		(mark === undefined || wanted.policyRouting.mark === mark);
	for (const {family, priority, mark, table} of live.rules)
		if (!isWanted(family, table, mark))
			await mustRun(run, 'ip', [
				...[flag[family], 'rule', 'del', 'pref', String(priority), 'fwmark', String(mark)],
				...['lookup', String(table), 'protocol', String(routeProtocol)],
			]);
	for (const {family, table} of live.routes)
		if (!isWanted(family, table))
			await mustRun(run, 'ip', [
				...[flag[family], 'route', 'del', 'local', family === 'ip' ? '0.0.0.0/0' : '::/0', 'dev', 'lo'],
				...['table', String(table), 'proto', String(routeProtocol)],
			]);
	if (live.hasPassThroughAddress && !wanted?.hasPassThroughAddress)
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
