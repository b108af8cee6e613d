import {createHash} from 'node:crypto';
import {AgentError} from '../errors.ts';
import type {Backend, LiveRules} from './backend.ts';
import {failureOf, mustRun, type Run} from './programs.ts';
import {aboutChain, renderAbout, renderNft, renderRemoval, tableName} from './render-nft.ts';
import {type Family, families, type Plan} from './rules.ts';

/** Native nftables: one table per family, replaced as a whole in one transaction. */
export function nftBackend(run: Run): Backend {
	const list = async (family: Family): Promise<readonly NftObject[] | undefined> => {
		const {code, stdout, stderr} = await run('nft', ['-j', 'list', 'table', family, tableName]);
		if (code === 0) return (JSON.parse(stdout) as {nftables: readonly NftObject[]}).nftables;
		if (/no such file|does not exist|not supported/i.test(stderr)) return undefined;
		throw failureOf('nft', ['list', 'table', family, tableName], {code, stdout, stderr});
	};
	/** Asks the kernel without changing anything. */
	const takes = async (script: string): Promise<boolean> => (await run('nft', ['-c', '-f', '-'], script)).code === 0;
	const readAll = async () => {
		const lists = await Promise.all(families.map(async family => [family, await list(family)] as const));
		return new Map(lists.flatMap(([family, objects]) => (objects ? [[family, objects] as const] : [])));
	};
	const render = async (plan: Plan) => {
		if (families.every(family => plan.rules.some(rule => rule.family === family))) return renderNft(plan);
		// A kernel without IPv6 refuses even to be asked to forget a table.
		const live = await readAll();
		const absent = families.filter(family => !live.has(family) && !plan.rules.some(rule => rule.family === family));
		return absent.reduce((text, family) => text.replace(renderRemoval(family), ''), renderNft(plan));
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
		read: async () => {
			const [tables, inFront] = await Promise.all([readAll(), findInFront(run)]);
			return tables.size === 0 ? undefined : describe(tables, inFront);
		},
		check: async plan => {
			const {code, stdout, stderr} = await run('nft', ['-c', '-f', '-'], await render(plan));
			if (code !== 0) throw refused(failureOf('nft', ['-c', '-f', '-'], {code, stdout, stderr}));
		},
		load: async plan => {
			await mustRun(run, 'nft', ['-f', '-'], await render(plan));
			// The kernel shows rules in its own words, so what it shows now is what a later look is compared with.
			const tables = await readAll();
			const expected = countPlanned(plan);
			const loaded = describe(tables, []);
			if (JSON.stringify(expected) !== JSON.stringify(loaded.counts)) return;
			const [family] = tables.keys();
			await mustRun(
				run,
				'nft',
				['-f', '-'],
				`add rule ${family} ${tableName} ${aboutChain} counter comment "loaded=${loaded.fingerprint}"\n`,
			);
		},
		remove: async () => {
			const live = await readAll();
			if (live.size > 0) await mustRun(run, 'nft', ['-f', '-'], [...live.keys()].map(renderRemoval).join(''));
		},
	};
}

function refused(failure: AgentError): AgentError {
	if (failure.code === 'capture.permission') return failure;
	return new AgentError('capture.unsupported', `this kernel or nft does not take the rules: ${failure.message}`, {
		cause: failure,
		hint: 'nothing was changed; try --capture-backend iptables-nft or iptables-legacy, or a newer kernel',
	});
}

type NftObject = Readonly<Record<string, Record<string, unknown>>>;

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
	let loadedFingerprint: string | undefined;
	const kept: unknown[] = [];
	for (const [family, objects] of tables) {
		for (const object of objects) {
			const {rule} = object;
			if (rule?.['chain'] === aboutChain) {
				const comment = String(rule['comment'] ?? '');
				if (comment.startsWith('loaded=')) loadedFingerprint = comment.slice('loaded='.length);
				else {
					abouts.add(comment);
					kept.push(comment);
				}
			} else if (rule) {
				const key = `${family} ${String(rule['chain'])}`;
				counts[key] = (counts[key] ?? 0) + 1;
				const seen = (rule['expr'] as readonly Record<string, {packets?: number}>[]).find(each => 'counter' in each);
				packets.push({
					family,
					chain: String(rule['chain']),
					comment: String(rule['comment'] ?? ''),
					packets: seen?.['counter']?.packets ?? 0,
				});
				kept.push(withoutCounters(rule));
			} else if (!('metainfo' in object)) kept.push(withoutCounters(object));
		}
	}
	const [about = '', ...others] = abouts;
	const [, kind, planDigest] = /^onramp 1 (capture|block) plan=([0-9a-f]+)$/.exec(about) ?? [];
	return {
		planDigest: others.length === 0 ? planDigest : undefined,
		kind: kind as LiveRules['kind'],
		counts: sortKeys(counts),
		fingerprint: createHash('sha256').update(JSON.stringify(kept)).digest('hex').slice(0, 32),
		loadedFingerprint,
		inFront,
		missing: [],
		packets,
	};
}

/** Handles are given anew at each load, and counters count. */
function withoutCounters(value: unknown): unknown {
	if (Array.isArray(value)) return value.map(withoutCounters);
	if (typeof value !== 'object' || value === null) return value;
	return Object.fromEntries(
		Object.entries(value)
			.filter(([name]) => name !== 'handle')
			.map(([name, child]) => [name, name === 'counter' ? null : withoutCounters(child)]),
	);
}

export const aboutOf = renderAbout;

/** Priority of our nat_output: what redirects before it takes connections from us. */
const ownOutputPriority = -105;

/** Chains of others that rewrite or untrack outgoing packets before our rules see them. */
async function findInFront(run: Run): Promise<readonly string[]> {
	const {code, stdout} = await run('nft', ['-j', 'list', 'ruleset']);
	if (code !== 0) return [];
	const objects = (JSON.parse(stdout) as {nftables: readonly NftObject[]}).nftables;
	const found: string[] = [];
	for (const {rule} of objects) {
		if (!rule || rule['table'] === tableName) continue;
		const place = `table ${String(rule['family'])} ${String(rule['table'])}, chain ${String(rule['chain'])}`;
		const expressions = rule['expr'] as readonly Record<string, unknown>[];
		if (expressions.some(each => 'notrack' in each))
			found.push(`${place}: untracks packets, which nothing can then redirect`);
		const chain = objects.find(
			({chain: each}) =>
				each && each['family'] === rule['family'] && each['table'] === rule['table'] && each['name'] === rule['chain'],
		)?.['chain'];
		const isBefore =
			chain?.['hook'] === 'output' && chain['type'] === 'nat' && Number(chain['prio']) <= ownOutputPriority;
		if (isBefore && expressions.some(each => 'redirect' in each || 'dnat' in each))
			found.push(`${place}: redirects connections before our rules`);
	}
	return [...new Set(found)];
}
