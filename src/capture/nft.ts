import {AgentError} from '../errors.ts';
import type {Backend, LiveRules} from './backend.ts';
import {findInFront} from './in-front.ts';
import type {Kernel, NftObject} from './kernel.ts';
import {failureOf, mustRun, type Run} from './programs.ts';
import {aboutChain, renderNft, renderRemoval, tableName} from './render-nft.ts';
import {type Family, families, type Plan, type Redirect} from './rules.ts';

/** Native nftables: one table per family, replaced as a whole in one transaction. */
export function nftBackend(run: Run): Backend {
	/** Asks the kernel without changing anything. */
	const takes = async (script: string): Promise<boolean> => (await run('nft', ['-c', '-f', '-'], script)).code === 0;
	const render = async (plan: Plan, kernel: Kernel) => {
		if (families.every(family => plan.rules.some(rule => rule.family === family))) return renderNft(plan);
		// A kernel without IPv6 refuses even to be asked to forget a table.
		const live = ownTables(await rulesOf(kernel));
		const absent = families.filter(family => !live.has(family) && !plan.rules.some(rule => rule.family === family));
		return absent.reduce((text, family) => text.replace(renderRemoval(family), ''), renderNft(plan));
	};
	const hand = async (args: readonly string[], text: string) => {
		const {code, stdout, stderr} = await run('nft', args, text);
		if (code !== 0) throw refused(failureOf('nft', args, {code, stdout, stderr}));
	};
	return {
		name: 'nft',
		abilities: async ipv6 => {
			const [hasConntrackTimeouts, hasNat] = await Promise.all([
				takes(
					`table ip ${tableName}_probe { ct timeout t { protocol tcp; l3proto ip; policy = { close : 0 }; }\nchain c { type filter hook output priority 10; ct timeout set "t"; }\n}\n`,
				),
				takes(`table ip6 ${tableName}_probe { chain c { type nat hook output priority -105; redirect; }\n}\n`),
			]);
			return {hasConntrackTimeouts, ipv6: ipv6 === 'on' && !hasNat ? 'no-nat' : ipv6};
		},
		render,
		read: async kernel => {
			const tables = ownTables(await rulesOf(kernel));
			return tables.size === 0 ? undefined : describe(tables, await findInFront('nft', kernel));
		},
		check: async (plan, kernel) => hand(['-c', '-f', '-'], await render(plan, kernel)),
		load: async (plan, kernel) => hand(['-f', '-'], await render(plan, kernel)),
		remove: async kernel => {
			const live = ownTables(await rulesOf(kernel));
			if (live.size > 0) await mustRun(run, 'nft', ['-f', '-'], [...live.keys()].map(renderRemoval).join(''));
		},
	};
}

async function rulesOf(kernel: Kernel): Promise<readonly NftObject[]> {
	const rules = await kernel.rules();
	if (rules instanceof AgentError) throw rules;
	return rules ?? [];
}

function ownTables(objects: readonly NftObject[]): ReadonlyMap<Family, readonly NftObject[]> {
	const isOf = (family: Family) => (object: NftObject) =>
		Object.values(object).some(
			each =>
				each['family'] === family && (each['table'] === tableName || (object['table'] && each['name'] === tableName)),
		);
	return new Map(
		families.flatMap(family => {
			const own = objects.filter(isOf(family));
			return own.length > 0 ? [[family, own] as const] : [];
		}),
	);
}

function refused(failure: AgentError): AgentError {
	if (failure.code === 'capture.permission') return failure;
	return new AgentError('capture.unsupported', `this kernel or nft does not take the rules: ${failure.message}`, {
		cause: failure,
		hint: 'nothing was changed; try --capture-backend iptables-nft or iptables-legacy, or a newer kernel',
	});
}

/** Sorted, so that two counts can be compared as text. */
export function countPlanned(plan: Plan): Readonly<Record<string, number>> {
	const counts: Record<string, number> = {};
	for (const {family, chain} of plan.rules) counts[`${family} ${chain}`] = (counts[`${family} ${chain}`] ?? 0) + 1;
	return sortKeys(counts);
}

const sortKeys = <T>(record: Readonly<Record<string, T>>): Readonly<Record<string, T>> =>
	Object.fromEntries(Object.entries(record).toSorted(([a], [b]) => (a < b ? -1 : 1)));

function describe(tables: ReadonlyMap<Family, readonly NftObject[]>, inFront: readonly string[]): LiveRules {
	const counts: Record<string, number> = {};
	const packets: {family: string; chain: string; comment: string; packets: number}[] = [];
	const abouts = new Set<string>();
	const redirects: Redirect[] = [];
	let tampering: string | undefined;
	for (const [family, objects] of tables) {
		const isAbout = ({rule}: NftObject) => rule?.['chain'] === aboutChain;
		const lastHandle = Math.max(...objects.filter(isAbout).map(({rule}) => Number(rule!['handle'])));
		for (const object of objects) {
			const {rule, chain, table} = object;
			if (isAbout(object)) {
				abouts.add(String(rule!['comment'] ?? ''));
				continue;
			}
			if (Number((rule ?? chain)?.['handle'] ?? 0) > lastHandle || !isAsMade(chain ?? table))
				tampering = 'the rules have been changed since they were loaded';
			if (!rule) continue;
			const key = `${family} ${String(rule['chain'])}`;
			counts[key] = (counts[key] ?? 0) + 1;
			const expressions = rule['expr'] as readonly Record<string, {packets?: number; port?: number}>[];
			const seen = expressions.find(each => 'counter' in each);
			for (const {redirect} of expressions) if (redirect?.port) redirects.push({family, port: redirect.port});
			packets.push({
				family,
				chain: String(rule['chain']),
				comment: String(rule['comment'] ?? ''),
				packets: seen?.['counter']?.packets ?? 0,
			});
		}
	}
	const [about = '', ...others] = abouts;
	const [, kind, planDigest] = /^onramp 1 (capture|block) plan=([0-9a-f]+)$/.exec(about) ?? [];
	return {
		planDigest: others.length === 0 ? planDigest : undefined,
		kind: kind as LiveRules['kind'],
		counts: sortKeys(counts),
		tampering,
		inFront,
		missing: [],
		redirects,
		packets,
	};
}

/** What of a chain or a table can be changed in place: the policy, and that it sleeps. */
const isAsMade = ({policy = 'accept', flags}: Readonly<Record<string, unknown>> = {}): boolean =>
	policy === 'accept' && flags === undefined;
