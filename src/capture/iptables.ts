import {hash} from 'node:crypto';
import {AgentError} from '../errors.ts';
import type {Backend, LiveRules} from './backend.ts';
import {findBeforeJump, findInFront} from './in-front.ts';
import {type LiveTables, ownPrefix} from './iptables-save.ts';
import {Kernel, type NftObject, programOf, type Xtables} from './kernel.ts';
import {mustRun, type Run} from './programs.ts';
import {aboutName, builtIns, nameOf, renderIptables, tables} from './render-iptables.ts';
import {type Chain, chains, type Family, families, type Plan, type Redirect} from './rules.ts';

/** iptables-legacy waits so long for the lock that all its users share; iptables-nft has none. */
const restoreArgs = ['--noflush', '-w', '30'];

type Live = ReadonlyMap<Family, LiveTables>;

/** iptables of either kind: chains of our own, and one jump to each from the kernel's. */
export function iptablesBackend(name: Xtables, run: Run): Backend {
	const saveAll = async (kernel: Kernel): Promise<Live> =>
		new Map(await Promise.all(families.map(async family => [family, await kernel.tables(name, family)] as const)));
	const restore = (family: Family, text: string, ...more: readonly string[]) =>
		text === ''
			? Promise.resolve('')
			: mustRun(run, programOf(name, family, 'restore'), [...restoreArgs, ...more], text);
	/** nft takes away what iptables-nft has made in one step, and nothing else does. */
	const hooksOf = async (kernel: Kernel) => {
		const rules = name === 'iptables-nft' ? await kernel.rules() : undefined;
		return Array.isArray(rules) ? (rules as readonly NftObject[]) : undefined;
	};
	const textsFor = async (plan: Plan, kernel: Kernel) => {
		const [live, objects] = await Promise.all([saveAll(kernel), hooksOf(kernel)]);
		return families.map(family => {
			const saved = live.get(family)!;
			const made = objects ? findMade(objects, plan, family, saved) : new Map<string, readonly string[]>();
			return [family, renderIptables(plan, family, saved, made, objects !== undefined)] as const;
		});
	};
	/** @param isGone - tables of a family that are to hold nothing of ours */
	const clear = async (kernel: Kernel, isGone: (family: Family, table: string) => boolean): Promise<void> => {
		const [live, objects] = await Promise.all([saveAll(kernel), hooksOf(kernel)]);
		if (!objects) {
			await allSettled(families.map(family => restore(family, renderRemoval(live.get(family)!, isGone, family))));
			return;
		}
		const script = families
			.flatMap(family =>
				tables
					.toReversed()
					.filter(table => isGone(family, table))
					.flatMap(table => renderNftRemoval(objects, family, table, madeBefore(live.get(family)!, table))),
			)
			.join('');
		if (script !== '') await mustRun(run, 'nft', ['-f', '-'], script);
	};
	/** Somebody else may put a rule where there was none in between; then nft refuses all of it. */
	const clearFor = async (kernel: Kernel, isGone: (family: Family, table: string) => boolean): Promise<void> => {
		for (let tries = 2; ; tries--) {
			try {
				return await clear(kernel, isGone);
			} catch (error) {
				if (tries === 0) throw error;
				kernel = new Kernel(run);
			}
		}
	};
	return {
		name,
		abilities: async ipv6 => ({
			hasConntrackTimeouts: false,
			// Looking at a table is how a kernel with modules comes to have it.
			ipv6:
				ipv6 === 'on' && (await run(name.replace('iptables', 'ip6tables'), ['-t', 'nat', '-S'])).code !== 0
					? 'no-nat'
					: ipv6,
		}),
		render: async (plan, kernel) =>
			(await textsFor(plan, kernel))
				.filter(([, text]) => text !== '')
				.map(([family, text]) => `# ${programOf(name, family, 'restore')} --noflush\n${text}`)
				.join('\n'),
		read: async kernel => {
			const live: Live = new Map(
				await Promise.all(
					families.map(async family => [family, await kernel.tablesWith(ownPrefix, name, family)] as const),
				),
			);
			if (!hasOwn(live)) return undefined;
			const inFront = [...live].flatMap(([family, saved]) =>
				findBeforeJump(programOf(name, family, 'save').replace('-save', ''), saved),
			);
			return {...describe(live), inFront: [...inFront, ...(await findInFront(name, kernel))]};
		},
		check: async (plan, kernel) => {
			const check = async ([family, text]: readonly [Family, string]) => {
				try {
					await restore(family, text, '--test');
				} catch (cause) {
					if (!(cause instanceof AgentError) || cause.code === 'capture.permission') throw cause;
					throw new AgentError('capture.unsupported', `${name} does not take the rules: ${cause.message}`, {
						cause,
						hint: 'nothing was changed; docs/capture.md lists what a kernel must have',
					});
				}
			};
			await Promise.all((await textsFor(plan, kernel)).map(check));
		},
		load: async (plan, kernel) => {
			const before = await saveAll(kernel);
			try {
				// Both at once, so that the death of this process finds neither or both on their way.
				await allSettled((await textsFor(plan, kernel)).map(([family, text]) => restore(family, text)));
			} catch (error) {
				await clearFor(new Kernel(run), () => true);
				for (const family of families) await restore(family, renderAsBefore(before.get(family)!));
				throw error;
			}
			const isWanted = (family: Family, table: string) =>
				plan.rules.some(rule => rule.family === family && rule.chain.startsWith(`${table}_`));
			if (
				families.some(family => tables.some(table => hasOwnIn(before.get(family)!, table) && !isWanted(family, table)))
			)
				await clearFor(new Kernel(run), (family, table) => !isWanted(family, table));
			const loaded = describe(await saveAll(new Kernel(run)));
			const family = families.find(each => plan.rules.some(rule => rule.family === each))!;
			const table = plan.rules.find(rule => rule.family === family)!.chain.split('_')[0]!;
			await restore(family, `*${table}\n-A ${aboutName} -m comment --comment "loaded=${loaded.fingerprint}"\nCOMMIT\n`);
		},
		remove: kernel => clearFor(kernel, () => true),
	};
}

async function allSettled(loads: readonly Promise<unknown>[]): Promise<void> {
	const failed = (await Promise.allSettled(loads)).find(({status}) => status === 'rejected');
	if (failed?.status === 'rejected') throw failed.reason;
}

const hasOwnIn = (saved: LiveTables, table: string): boolean =>
	saved.chainsOf(table).some(chain => chain.startsWith(ownPrefix));

const hasOwn = (live: Live): boolean =>
	[...live.values()].some(saved => saved.names.some(table => hasOwnIn(saved, table)));

/**
 * The kernel's chains, and tables, that iptables-nft makes because of us, so that the last of us can take them away
 * again: those of an earlier load, as it has written down, and those that are not there yet.
 */
function findMade(
	objects: readonly NftObject[],
	plan: Plan,
	family: Family,
	live: LiveTables,
): ReadonlyMap<string, readonly string[]> {
	const made = new Map<string, readonly string[]>();
	for (const table of tables) {
		const needed = new Set(
			plan.rules
				.filter(rule => rule.family === family && rule.chain.startsWith(`${table}_`))
				.flatMap(({chain}) => builtIns[chain] ?? []),
		);
		const present = chainsIn(objects, family, table);
		const missing = [...needed].filter(name => !present?.includes(name));
		made.set(table, [...new Set([...madeBefore(live, table), ...(present ? [] : ['*']), ...missing])]);
	}
	return made;
}

const madeBefore = (live: LiveTables, table: string): readonly string[] =>
	aboutOf(live, table).flatMap(text => / made=(\S+)$/.exec(text)?.[1]?.split(',') ?? []);

/** undefined = there is no such table. */
function chainsIn(objects: readonly NftObject[], family: Family, table: string): readonly string[] | undefined {
	if (!objects.some(({table: each}) => each?.['family'] === family && each['name'] === table)) return undefined;
	return objects.flatMap(({chain}) =>
		chain?.['family'] === family && chain['table'] === table ? [String(chain['name'])] : [],
	);
}

/**
 * For nft, which takes away in one step what iptables-nft has made: our jumps and chains, and what a first load made
 * and is then empty, without which the dump of the rules is what it was.
 */
function renderNftRemoval(
	objects: readonly NftObject[],
	family: Family,
	table: string,
	made: readonly string[],
): readonly string[] {
	const present = chainsIn(objects, family, table) ?? [];
	const own = present.filter(name => name.startsWith(ownPrefix));
	if (own.length === 0) return [];
	const foreign = objects.flatMap(({rule}) =>
		rule?.['family'] === family && rule['table'] === table && !own.includes(String(rule['chain'])) ? [rule] : [],
	);
	const jumps = foreign.filter(rule => {
		const {jump, goto: further} = Object.assign({}, ...(rule['expr'] as readonly object[])) as Record<
			'jump' | 'goto',
			{readonly target?: string} | undefined
		>;
		return (jump ?? further)?.target?.startsWith(ownPrefix) === true;
	});
	const isEmpty = (name: string) => !foreign.some(rule => rule['chain'] === name && !jumps.includes(rule));
	const unneeded = made.filter(name => present.includes(name) && isEmpty(name));
	const isAllGone = made.includes('*') && present.length === own.length + unneeded.length;
	return [
		...jumps.map(rule => `delete rule ${family} ${table} ${String(rule['chain'])} handle ${String(rule['handle'])}\n`),
		...own.map(name => `flush chain ${family} ${table} ${name}\n`),
		...[...own, ...unneeded].map(name => `delete chain ${family} ${table} ${name}\n`),
		...(isAllGone ? [`delete table ${family} ${table}\n`] : []),
	];
}

const aboutOf = (live: LiveTables, table: string): readonly string[] =>
	live
		.rulesOf(table)
		.filter(line => line.startsWith(`-A ${aboutName} `))
		.map(line => /--comment "?([^"]*)"?/.exec(line)?.[1]?.trim() ?? '');

function renderRemoval(live: LiveTables, isGone: (family: Family, table: string) => boolean, family: Family): string {
	return tables
		.toReversed()
		.filter(table => isGone(family, table))
		.map(table => {
			const own = live.chainsOf(table).filter(chain => chain.startsWith(ownPrefix));
			if (own.length === 0) return '';
			return [
				`*${table}`,
				...live.jumpsOf(table).map(({line}) => line.replace(/^-A /, '-D ')),
				...own.map(chain => `-F ${chain}`),
				...own.map(chain => `-X ${chain}`),
				'COMMIT',
				'',
			].join('\n');
		})
		.join('');
}

/** After a load that failed half way: our chains as they were before it. */
const renderAsBefore = (old: LiveTables): string =>
	tables
		.map(table => {
			const own = old.chainsOf(table).filter(chain => chain.startsWith(ownPrefix));
			if (own.length === 0) return '';
			const rules = old.rulesOf(table).filter(line => own.includes(line.split(' ')[1]!));
			const jumps = old
				.jumpsOf(table)
				.map(({line, from, position}) => line.replace(`-A ${from} `, `-I ${from} ${position + 1} `));
			return [`*${table}`, ...own.map(chain => `:${chain} - [0:0]`), ...rules, ...jumps, 'COMMIT', ''].join('\n');
		})
		.join('');

/** With the fingerprint of all our rules, without counters. */
function describe(live: Live): LiveRules & {readonly fingerprint: string} {
	const counts: Record<string, number> = {};
	const packets: {family: string; chain: string; comment: string; packets: number}[] = [];
	const abouts = new Set<string>();
	let loadedFingerprint: string | undefined;
	const kept: string[] = [];
	const missing: string[] = [];
	const redirects: Redirect[] = [];
	for (const [family, saved] of live)
		for (const table of tables) {
			for (const text of aboutOf(saved, table))
				if (text.startsWith('loaded=')) loadedFingerprint = text.slice('loaded='.length);
				else abouts.add(text.replace(/ made=\S+$/, ''));
			const own = saved.chainsOf(table).filter(chain => chain.startsWith(ownPrefix));
			const jumps = saved.jumpsOf(table);
			for (const line of saved.rulesOf(table)) {
				const chain = chainFor(table, line.split(' ')[1]!);
				if (chain) {
					counts[`${family} ${chain}`] = (counts[`${family} ${chain}`] ?? 0) + 1;
					kept.push(`${family} ${table} ${line}`);
					const [, port] = / -j REDIRECT --to-ports (\d+)/.exec(line) ?? [];
					if (port) redirects.push({family, port: Number(port)});
				}
			}
			kept.push(...jumps.map(({line}) => `${family} ${table} ${line}`));
			for (const name of own) {
				const builtIn = builtInFor(table, name);
				if (builtIn === undefined) continue;
				const reached = jumps.filter(({to, from}) => to === name && from === builtIn).length;
				if (reached !== 1)
					missing.push(
						`${family} table ${table}: ${reached === 0 ? 'nothing leads' : `${reached} rules lead`} from ${builtIn} to ${name}`,
					);
				const jump = jumps.find(({to}) => to === name);
				if (jump && jump.position !== saved.placeFor(table, builtIn))
					missing.push(`${family} table ${table}: ${builtIn} leads to ${name} ${saved.whyMisplaced(table, jump)}`);
			}
		}
	const fingerprint = hash('sha256', JSON.stringify(kept)).slice(0, 32);
	const [about = '', ...others] = abouts;
	const [, kind, planDigest] = /^onramp 1 (capture|block) plan=([0-9a-f]+)$/.exec(about) ?? [];
	return {
		planDigest: others.length === 0 ? planDigest : undefined,
		kind: kind as LiveRules['kind'],
		counts: Object.fromEntries(Object.entries(counts).toSorted(([a], [b]) => (a < b ? -1 : 1))),
		fingerprint,
		tampering:
			loadedFingerprint === fingerprint
				? undefined
				: loadedFingerprint === undefined
					? 'the load of the rules was cut short'
					: 'the rules have been changed since they were loaded',
		inFront: [],
		missing,
		redirects,
		packets,
	};
}

const chainFor = (table: string, name: string): Chain | undefined =>
	chains.find(chain => chain.startsWith(`${table}_`) && nameOf(chain) === name);

function builtInFor(table: string, name: string): string | undefined {
	const chain = chainFor(table, name);
	return chain === undefined ? undefined : /_(output|prerouting|input)$/.exec(chain)?.[1]?.toUpperCase();
}
