import {findProgram} from '../lifecycle/find-program.ts';
import type {Kernel} from './kernel.ts';
import {countConnections, readSockets} from './older.ts';
import type {Run} from './programs.ts';
import type {Family} from './rules.ts';

/** Where a rule of ours redirects to. */
export interface Redirect {
	readonly family: Family;
	readonly port: number;
}

export interface Ended {
	/** Connections whose both ends were told. */
	readonly ended: number;
	/** Connections whose ends wait in vain for each other. */
	readonly orphaned: number;
}

const holdName = 'onramp_ending';

/**
 * Takes rules away and ends the connections that they have redirected. With the last user of address translation the
 * kernel gives up translating: whatever either end then says arrives under an address that the other has never heard
 * of, also that it has ended, and callers keep a dead connection for their next request. So translation is kept by a
 * table that does nothing else until both ends have been told.
 * @param redirects - of the rules that go
 */
export async function endingConnections(
	run: Run,
	redirects: readonly Redirect[],
	takeAway: () => Promise<unknown>,
): Promise<Ended> {
	const count = async () => countConnections(redirects, await readSockets());
	const before = redirects.length === 0 ? 0 : await count();
	if (before === 0) {
		await takeAway();
		return {ended: 0, orphaned: 0};
	}
	const families = [...new Set(redirects.map(({family}) => family))];
	const isHeld = findProgram('nft') !== undefined && (await run('nft', ['-f', '-'], renderHold(families))).code === 0;
	const end = () => run('ss', ['-K', '-H', '-n', '-t', ...which(redirects)]);
	const canEnd = findProgram('ss') !== undefined;
	try {
		// Without the table those that are made in between are missed.
		if (canEnd && !isHeld) await end();
		await takeAway();
		if (canEnd && isHeld) await end();
	} finally {
		if (isHeld) await run('nft', ['-f', '-'], families.map(renderRelease).join(''));
	}
	const left = await count();
	return {ended: Math.max(before - left, 0), orphaned: left};
}

/** One sentence each; empty when there were none. */
export function describeEnded({ended, orphaned}: Ended): readonly string[] {
	const connections = (count: number) => (count === 1 ? '1 connection' : `${count} connections`);
	return [
		...(ended > 0 ? [`${connections(ended)} through Envoy ended with the rules`] : []),
		...(orphaned > 0
			? [`${connections(orphaned)} through Envoy could not be ended: both ends wait until they give up`]
			: []),
	];
}

/** What somebody has left behind who died half way. */
export async function removeHold(run: Run, kernel: Kernel): Promise<void> {
	const rules = await kernel.rules();
	if (!Array.isArray(rules)) return;
	const families = rules.flatMap(({table}) => (table?.['name'] === holdName ? [table['family'] as Family] : []));
	if (families.length > 0) await run('nft', ['-f', '-'], families.map(renderRelease).join(''));
}

/** A chain of this kind keeps the kernel translating, and a rule that asks for its state keeps it tracking. */
const renderHold = (families: readonly Family[]): string =>
	families
		.map(
			family =>
				`table ${family} ${holdName} {\n\tchain hold {\n\t\ttype nat hook prerouting priority -95;\n\t\tct state new counter comment "onramp: until those who are connected through Envoy have been told"\n\t}\n}\n`,
		)
		.join('');

const renderRelease = (family: Family): string =>
	`add table ${family} ${holdName}\ndelete table ${family} ${holdName}\n`;

/** Where IPv6 alone goes, IPv4 stays, though Envoy may take both on one socket. */
function which(redirects: readonly Redirect[]): readonly string[] {
	const ports = [...new Set(redirects.map(({port}) => `sport = :${port}`))].join(' or ');
	return redirects.every(({family}) => family === 'ip6')
		? ['-6', 'state', 'connected', `( ${ports} ) and not dst ::ffff:0:0/96`]
		: ['state', 'connected', `( ${ports} )`];
}
