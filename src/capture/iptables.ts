import {createHash} from 'node:crypto';
import {AgentError} from '../errors.ts';
import type {Backend, BackendName, LiveRules} from './backend.ts';
import {type LiveTables, ownPrefix, parseSave} from './iptables-save.ts';
import {failureOf, findProgram, mustRun, type Run} from './programs.ts';
import {aboutName, nameOf, renderIptables, tables} from './render-iptables.ts';
import {type Chain, chains, type Family, families, type Plan} from './rules.ts';

const programOf = (name: BackendName, family: Family, action: 'save' | 'restore'): string =>
	`${name.replace('iptables', family === 'ip' ? 'iptables' : 'ip6tables')}-${action}`;

/** iptables-legacy waits so long for the lock that all its users share; iptables-nft has none. */
const restoreArgs = ['--noflush', '-w', '30'];

type Live = ReadonlyMap<Family, LiveTables>;

/** iptables of either kind: chains of our own, and one jump to each from the kernel's. */
export function iptablesBackend(name: Exclude<BackendName, 'nft'>, run: Run): Backend {
	const save = async (family: Family): Promise<LiveTables> => {
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
		families.map(
			family => [family, renderIptables(plan, family, live.get(family)!, madeTables(name, live.get(family)!))] as const,
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
			return textsFor(plan, live)
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
			for (const [family, text] of textsFor(plan, live)) {
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
				await allSettled(textsFor(plan, before).map(([family, text]) => restore(family, text)));
			} catch (error) {
				await putBack(before, await saveAll(), restore);
				throw error;
			}
			if (name === 'iptables-nft') await removeMadeTables(run, before);
			const loaded = describe(await saveAll());
			const family = families.find(each => plan.rules.some(rule => rule.family === each))!;
			const table = plan.rules.find(rule => rule.family === family)!.chain.split('_')[0]!;
			await restore(family, `*${table}\n-A ${aboutName} -m comment --comment "loaded=${loaded.fingerprint}"\nCOMMIT\n`);
		},
		remove: async () => {
			const live = await saveAll();
			await allSettled(families.map(family => restore(family, renderRemoval(live.get(family)!))));
			if (name === 'iptables-nft') await removeMadeTables(run, live);
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

/** Tables that only iptables-nft and we have brought into being, so that the last of us can take them away again. */
function madeTables(name: BackendName, live: LiveTables): readonly string[] {
	if (name !== 'iptables-nft') return [];
	return tables.filter(table => !live.has(table) || aboutOf(live, table).some(text => text.endsWith(' made')));
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

/** Empty tables that a first load made: without them the dump of the rules is what it was. */
async function removeMadeTables(run: Run, before: Live): Promise<void> {
	if ((await findProgram('nft')) === undefined) return;
	for (const [family, saved] of before)
		for (const table of tables) {
			if (!aboutOf(saved, table).some(text => text.endsWith(' made'))) continue;
			const {code, stdout} = await run('nft', ['-j', 'list', 'table', family, table]);
			if (code !== 0) continue;
			const objects = (JSON.parse(stdout) as {nftables: readonly Record<string, Record<string, unknown>>[]}).nftables;
			const isEmpty = objects.every(
				object =>
					'metainfo' in object ||
					'table' in object ||
					(object['chain']?.['hook'] !== undefined && object['chain']['policy'] === 'accept'),
			);
			if (isEmpty) await run('nft', ['delete', 'table', family, table]);
		}
}

function describe(live: Live): LiveRules {
	const counts: Record<string, number> = {};
	const packets: {family: string; chain: string; comment: string; packets: number}[] = [];
	const abouts = new Set<string>();
	let loadedFingerprint: string | undefined;
	const kept: string[] = [];
	const inFront: string[] = [];
	const missing: string[] = [];
	for (const [family, saved] of live)
		for (const table of tables) {
			for (const text of aboutOf(saved, table))
				if (text.startsWith('loaded=')) loadedFingerprint = text.slice('loaded='.length);
				else abouts.add(text.replace(/ made$/, ''));
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
			inFront.push(...saved.inFront(table).map(line => `${family} ${line}`));
			for (const name of own) {
				const builtIn = builtInFor(table, name);
				if (builtIn === undefined) continue;
				const reached = jumps.filter(({to, from}) => to === name && from === builtIn).length;
				if (reached !== 1)
					missing.push(
						`${family} table ${table}: ${reached === 0 ? 'nothing leads' : `${reached} rules lead`} from ${builtIn} to ${name}`,
					);
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
		inFront,
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
