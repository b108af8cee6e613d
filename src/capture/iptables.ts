import {createHash} from 'node:crypto';
import {AgentError} from '../errors.ts';
import type {Backend, BackendName, LiveRules} from './backend.ts';
import {hasLegacyTables, type LiveTables, ownPrefix, parseSave} from './iptables-save.ts';
import {failureOf, findProgram, mustRun, type Run} from './programs.ts';
import {aboutName, builtIns, nameOf, renderIptables, tables} from './render-iptables.ts';
import {type Chain, chains, type Family, families, type Plan} from './rules.ts';

const programOf = (name: BackendName, family: Family, action: 'save' | 'restore'): string =>
	`${name.replace('iptables', family === 'ip' ? 'iptables' : 'ip6tables')}-${action}`;

/** iptables-legacy waits so long for the lock that all its users share; iptables-nft has none. */
const restoreArgs = ['--noflush', '-w', '30'];

type Live = ReadonlyMap<Family, LiveTables>;

/** iptables of either kind: chains of our own, and one jump to each from the kernel's. */
export function iptablesBackend(name: Exclude<BackendName, 'nft'>, run: Run): Backend {
	const save = async (family: Family): Promise<LiveTables> => {
		if (name === 'iptables-legacy' && !(await hasLegacyTables(family))) return parseSave('');
		const {code, stdout, stderr} = await run(programOf(name, family, 'save'), ['-c']);
		if (code === 0) return parseSave(stdout);
		// A kernel without IPv6 has no such tables.
		if (family === 'ip6' && !/permission|permitted/i.test(stderr)) return parseSave('');
		throw failureOf(programOf(name, family, 'save'), [], {code, stdout, stderr});
	};
	const saveAll = async (): Promise<Live> =>
		new Map(await Promise.all(families.map(async family => [family, await save(family)] as const)));
	const restore = (family: Family, text: string, ...more: readonly string[]) =>
		text === ''
			? Promise.resolve('')
			: mustRun(run, programOf(name, family, 'restore'), [...restoreArgs, ...more], text);
	const textsFor = (plan: Plan, live: Live) =>
		Promise.all(
			families.map(async family => {
				const saved = live.get(family)!;
				const made =
					name === 'iptables-nft' ? await findMade(run, plan, family, saved) : new Map<string, readonly string[]>();
				return [family, renderIptables(plan, family, saved, made)] as const;
			}),
		);
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
		render: async plan => {
			const live = await saveAll();
			return (await textsFor(plan, live))
				.filter(([, text]) => text !== '')
				.map(([family, text]) => `# ${programOf(name, family, 'restore')} --noflush\n${text}`)
				.join('\n');
		},
		read: async () => {
			const live = await saveAll();
			return hasOwn(live) ? describe(live) : undefined;
		},
		check: async plan => {
			const live = await saveAll();
			for (const [family, text] of await textsFor(plan, live)) {
				try {
					await restore(family, text, '--test');
				} catch (cause) {
					if (!(cause instanceof AgentError) || cause.code === 'capture.permission') throw cause;
					throw new AgentError('capture.unsupported', `${name} does not take the rules: ${cause.message}`, {
						cause,
						hint: 'nothing was changed; docs/capture.md lists what a kernel must have',
					});
				}
			}
		},
		load: async plan => {
			const before = await saveAll();
			try {
				// Both at once, so that the death of this process finds neither or both on their way.
				await allSettled((await textsFor(plan, before)).map(([family, text]) => restore(family, text)));
			} catch (error) {
				await putBack(before, await saveAll(), restore);
				throw error;
			}
			if (name === 'iptables-nft')
				await removeMade(run, before, (family, table) =>
					plan.rules.some(rule => rule.family === family && rule.chain.startsWith(`${table}_`)),
				);
			const loaded = describe(await saveAll());
			const family = families.find(each => plan.rules.some(rule => rule.family === each))!;
			const table = plan.rules.find(rule => rule.family === family)!.chain.split('_')[0]!;
			await restore(family, `*${table}\n-A ${aboutName} -m comment --comment "loaded=${loaded.fingerprint}"\nCOMMIT\n`);
		},
		remove: async () => {
			const live = await saveAll();
			await allSettled(families.map(family => restore(family, renderRemoval(live.get(family)!))));
			if (name === 'iptables-nft') await removeMade(run, live, () => false);
		},
	};
}

async function allSettled(loads: readonly Promise<unknown>[]): Promise<void> {
	const failed = (await Promise.allSettled(loads)).find(({status}) => status === 'rejected');
	if (failed?.status === 'rejected') throw failed.reason;
}

const hasOwn = (live: Live): boolean =>
	[...live.values()].some(saved =>
		saved.names.some(table => saved.chainsOf(table).some(chain => chain.startsWith(ownPrefix))),
	);

/**
 * The kernel's chains, and tables, that iptables-nft makes because of us, so that the last of us can take them away
 * again: those of an earlier load, as it has written down, and those that are not there yet.
 */
async function findMade(
	run: Run,
	plan: Plan,
	family: Family,
	live: LiveTables,
): Promise<ReadonlyMap<string, readonly string[]>> {
	const made = new Map<string, readonly string[]>();
	if ((await findProgram('nft')) === undefined) return made;
	for (const table of tables) {
		const needed = new Set(
			plan.rules
				.filter(rule => rule.family === family && rule.chain.startsWith(`${table}_`))
				.flatMap(({chain}) => builtIns[chain] ?? []),
		);
		const present = await listHooks(run, family, table);
		const missing = [...needed].filter(name => !present?.has(name));
		made.set(table, [...new Set([...madeBefore(live, table), ...(present ? [] : ['*']), ...missing])]);
	}
	return made;
}

const madeBefore = (live: LiveTables, table: string): readonly string[] =>
	aboutOf(live, table).flatMap(text => / made=(\S+)$/.exec(text)?.[1]?.split(',') ?? []);

/** The kernel's chains of a table with the number of their rules; undefined = there is no such table. */
async function listHooks(run: Run, family: Family, table: string): Promise<ReadonlyMap<string, number> | undefined> {
	const {code, stdout} = await run('nft', ['-j', 'list', 'table', family, table]);
	if (code !== 0) return undefined;
	const objects = (JSON.parse(stdout) as {nftables: readonly Record<string, Record<string, unknown>>[]}).nftables;
	const rulesIn = (name: unknown) => objects.filter(({rule}) => rule?.['chain'] === name).length;
	return new Map(
		objects.flatMap(({chain}) => (chain ? [[String(chain['name']), rulesIn(chain['name'])] as const] : [])),
	);
}

const aboutOf = (live: LiveTables, table: string): readonly string[] =>
	live
		.rulesOf(table)
		.filter(line => line.startsWith(`-A ${aboutName} `))
		.map(line => /--comment "?([^"]*)"?/.exec(line)?.[1]?.trim() ?? '');

function renderRemoval(live: LiveTables): string {
	return tables
		.toReversed()
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
async function putBack(
	before: Live,
	now: Live,
	restore: (family: Family, text: string) => Promise<unknown>,
): Promise<void> {
	for (const family of families) {
		await restore(family, renderRemoval(now.get(family)!));
		const old = before.get(family)!;
		const text = tables
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
		await restore(family, text);
	}
}

/** What a first load made and is now empty: without it the dump of the rules is what it was. */
async function removeMade(run: Run, before: Live, isKept: (family: Family, table: string) => boolean): Promise<void> {
	if ((await findProgram('nft')) === undefined) return;
	for (const [family, saved] of before)
		for (const table of tables) {
			const made = madeBefore(saved, table);
			if (made.length === 0 || isKept(family, table)) continue;
			const chains = await listHooks(run, family, table);
			if (!chains) continue;
			const empty = made.filter(name => chains.get(name) === 0);
			for (const name of empty) await run('nft', ['delete', 'chain', family, table, name]);
			if (made.includes('*') && chains.size === empty.length) await run('nft', ['delete', 'table', family, table]);
		}
}

function describe(live: Live): LiveRules {
	const counts: Record<string, number> = {};
	const packets: {family: string; chain: string; comment: string; packets: number}[] = [];
	const abouts = new Set<string>();
	let loadedFingerprint: string | undefined;
	const kept: string[] = [];
	const missing: string[] = [];
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
	const [about = '', ...others] = abouts;
	const [, kind, planDigest] = /^onramp 1 (capture|block) plan=([0-9a-f]+)$/.exec(about) ?? [];
	return {
		planDigest: others.length === 0 ? planDigest : undefined,
		kind: kind as LiveRules['kind'],
		counts: Object.fromEntries(Object.entries(counts).toSorted(([a], [b]) => (a < b ? -1 : 1))),
		fingerprint: createHash('sha256').update(JSON.stringify(kept)).digest('hex').slice(0, 32),
		loadedFingerprint,
		// Those are told as a jump that is not where it belongs, which a new load mends.
		inFront: [],
		missing,
		packets,
	};
}

const chainFor = (table: string, name: string): Chain | undefined =>
	chains.find(chain => chain.startsWith(`${table}_`) && nameOf(chain) === name);

function builtInFor(table: string, name: string): string | undefined {
	const chain = chainFor(table, name);
	return chain === undefined ? undefined : /_(output|prerouting|input)$/.exec(chain)?.[1]?.toUpperCase();
}
