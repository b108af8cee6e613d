import {setTimeout as sleep} from 'node:timers/promises';
import {findProgram} from '../lifecycle/find-program.ts';
import type {Kernel, NftObject} from './kernel.ts';
import {countConnections, readSockets} from './older.ts';
import {mustRun, type Run} from './programs.ts';
import type {Family, Redirect} from './rules.ts';

export interface Ended {
	/** Connections whose both ends were told. */
	readonly ended: number;
	/** Connections whose ends wait in vain for each other. */
	readonly orphaned: number;
}

/** For answers that are under way. */
const graceMs = 500;
const holdName = 'onramp_ending';

/**
 * Takes rules away and ends the connections that they have redirected. With the last user of address translation the
 * kernel gives up translating: whatever either end then says arrives under an address that the other has never heard
 * of, also that it has ended, and callers keep a dead connection for their next request. So translation is kept by a
 * table that does nothing else until both ends have been told; what is nearly done gets the time to end by itself.
 * @param redirects - of the rules that go
 */
export async function endingConnections(
	run: Run,
	redirects: readonly Redirect[],
	takeAway: () => Promise<unknown>,
): Promise<Ended> {
	if (redirects.length === 0) {
		await takeAway();
		return {ended: 0, orphaned: 0};
	}
	const count = async () => countConnections(redirects, await readSockets());
	// Also where nobody is connected now: somebody may be before the rules are gone.
	const isHeld = findProgram('nft') !== undefined && (await run('nft', ['-f', '-'], renderHold(redirects))).code === 0;
	const end = () => run('ss', ['-K', '-H', '-n', '-t', ...which(redirects)]);
	const canEnd = findProgram('ss') !== undefined;
	let open = await count();
	try {
		// Without the table those that are made in between are missed.
		if (canEnd && !isHeld) await end();
		await takeAway();
		if (isHeld) open = await awaitNone(count);
		if (canEnd && isHeld) await end();
	} finally {
		if (isHeld) await release(run, redirects);
	}
	const left = await count();
	return {ended: Math.max(open - left, 0), orphaned: left};
}

/** How many are left when they have had their time. */
async function awaitNone(count: () => Promise<number>): Promise<number> {
	const deadlineMs = performance.now() + graceMs;
	let open = await count();
	while (open > 0 && performance.now() < deadlineMs) {
		await sleep(20);
		open = await count();
	}
	return open;
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

/** What is still held for connections whose rules somebody has taken away who died half way. */
export async function readHeld(kernel: Kernel): Promise<readonly Redirect[]> {
	const rules = await kernel.rules();
	const held = Array.isArray(rules) ? rules.filter(({rule}: NftObject) => rule?.['table'] === holdName) : [];
	return held.flatMap(({rule}: NftObject) =>
		(rule!['expr'] as readonly {readonly redirect?: {readonly port: number}}[]).flatMap(({redirect}) =>
			redirect ? [{family: rule!['family'] as Family, port: redirect.port}] : [],
		),
	);
}

export async function release(run: Run, held: readonly Redirect[]): Promise<void> {
	if (held.length > 0) await mustRun(run, 'nft', ['-f', '-'], familiesOf(held).map(renderRelease).join(''));
}

/** A chain of this kind keeps the kernel translating, and such rules keep it tracking, though no connection is to port 0. */
const renderHold = (redirects: readonly Redirect[]): string =>
	familiesOf(redirects)
		.map(of => {
			const ports = new Set(redirects.filter(({family}) => family === of).map(({port}) => port));
			const rules = [...ports].map(port => `\t\ttcp dport 0 redirect to :${port}\n`).join('');
			return `table ${of} ${holdName} {\n\tchain hold {\n\t\ttype nat hook prerouting priority -95;\n${rules}\t}\n}\n`;
		})
		.join('');

const renderRelease = (family: Family): string =>
	`add table ${family} ${holdName}\ndelete table ${family} ${holdName}\n`;

const familiesOf = (redirects: readonly Redirect[]): readonly Family[] => [
	...new Set(redirects.map(({family}) => family)),
];

/** Where IPv6 alone goes, IPv4 stays, though Envoy may take both on one socket. */
function which(redirects: readonly Redirect[]): readonly string[] {
	const ports = [...new Set(redirects.map(({port}) => `sport = :${port}`))].join(' or ');
	return redirects.every(({family}) => family === 'ip6')
		? ['-6', 'state', 'connected', `( ${ports} ) and not dst ::ffff:0:0/96`]
		: ['state', 'connected', `( ${ports} )`];
}
