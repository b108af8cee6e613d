import {AgentError} from '../errors.ts';
import type {BackendName} from './backend.ts';
import {type LiveTables, ownPrefix} from './iptables-save.ts';
import {type Kernel, type NftObject, programOf, type Xtables} from './kernel.ts';
import {tableName} from './render-nft.ts';
import {families} from './rules.ts';

type Fields = Readonly<Record<string, unknown>>;

/** Up to which priority a nat chain of somebody else sees packets before ours do. */
const lastInFront: Readonly<Record<BackendName, {readonly output: number; readonly prerouting: number}>> = {
	nft: {output: -105, prerouting: -95},
	// Of two with the same priority it is the later one that the kernel asks first, and nobody tells which that is.
	'iptables-nft': {output: -100, prerouting: -100},
	'iptables-legacy': {output: -100, prerouting: -100},
};

/** The priority of iptables; where containers are published, which is no business of ours. */
const usualPriority = -100;

/**
 * Rules of others that take connections before ours see them, in words. To where a published port leads (DNAT of what
 * comes in) is left to who has published it; what is led to another port of this machine would have been Envoy's.
 */
export async function findInFront(backend: BackendName, kernel: Kernel): Promise<readonly string[]> {
	const objects = await kernel.rules();
	const known = objects && !(objects instanceof AgentError) ? objects : [];
	// What nft does not show, or not whole.
	const hidden: Xtables[] = backend === 'iptables-legacy' ? [] : ['iptables-legacy'];
	if (backend !== 'iptables-nft' && known.some(({rule}) => rule && isNameless(rule))) hidden.push('iptables-nft');
	const others = await Promise.all(hidden.map(tables => findRedirects(tables, backend, kernel)));
	return [...new Set([...findNative(backend, known), ...others.flat()])];
}

/** Up to 1.0.2 nft has no name in its JSON for what comes of iptables-nft. */
const isNameless = (rule: Fields): boolean => expressionsOf(rule).some(each => each['xt'] === null);

/** Of nftables, and of iptables-nft where that is not the backend itself. */
function findNative(backend: BackendName, objects: readonly NftObject[]): readonly string[] {
	const isOwn = ({family, table}: Fields) =>
		table === tableName || (backend === 'iptables-nft' && family !== 'inet' && xtablesNames.has(String(table)));
	const rules = objects.flatMap(({rule}) => (rule && !isOwn(rule) ? [rule] : []));
	const found: string[] = [];
	for (const rule of rules)
		if (expressionsOf(rule).some(each => 'notrack' in each))
			found.push(`${placeOf(rule)}: untracks packets, which nothing can then redirect`);
	for (const {chain} of objects) {
		if (chain?.['type'] !== 'nat' || isOwn(chain)) continue;
		const priority = Number(chain['prio']);
		const hook = chain['hook'];
		if ((hook !== 'output' && hook !== 'prerouting') || priority > lastInFront[backend][hook]) continue;
		const takes = hook === 'output' && priority < usualPriority ? ['redirect', 'dnat'] : ['redirect'];
		for (const rule of reachedFrom(chain, rules))
			if (expressionsOf(rule).some(each => takes.some(target => hasTarget(each, target))))
				found.push(`${placeOf(rule)}: redirects connections before our rules`);
	}
	return found;
}

const xtablesNames: ReadonlySet<string> = new Set(['raw', 'mangle', 'nat', 'filter']);

const expressionsOf = (rule: Fields): readonly Fields[] => rule['expr'] as readonly Fields[];

/** `xt`: a target of iptables-nft, which nft knows by name only. */
const hasTarget = (expression: Fields, target: string): boolean =>
	target in expression || (expression['xt'] as Fields | undefined)?.['name'] === target.toUpperCase();

const placeOf = (rule: Fields): string =>
	`table ${String(rule['family'])} ${String(rule['table'])}, chain ${String(rule['chain'])}`;

function reachedFrom({family, table, name}: Fields, rules: readonly Fields[]): readonly Fields[] {
	const chains = new Set([name]);
	const reached: Fields[] = [];
	// A set is walked to its end, also what is added on the way.
	for (const chain of chains)
		for (const rule of rules) {
			if (rule['family'] !== family || rule['table'] !== table || rule['chain'] !== chain) continue;
			reached.push(rule);
			for (const {jump, goto: further} of expressionsOf(rule)) {
				const target = ((jump ?? further) as Fields | undefined)?.['target'];
				if (target !== undefined) chains.add(target);
			}
		}
	return reached;
}

async function findRedirects(tables: Xtables, backend: BackendName, kernel: Kernel): Promise<readonly string[]> {
	const found = families.map(async family => {
		const live = await kernel.tables(tables, family).catch(unseen);
		if (!live) return [];
		const builtIns = backend === 'nft' ? ['PREROUTING'] : ['PREROUTING', 'OUTPUT'];
		const tool = programOf(tables, family, 'save').replace('-save', '');
		return builtIns.flatMap(chain => describeRedirects(tool, live.redirectsFrom('nat', chain)));
	});
	return (await Promise.all(found)).flat();
}

/** Who may use one way may not even look at another. */
const unseen = (error: unknown): undefined => {
	if (error instanceof AgentError) return undefined;
	throw error;
};

/** Of the very table that our jump is in: what stands before it, and has to, as it leads to the chains of containers. */
export function findBeforeJump(tool: string, tables: LiveTables): readonly string[] {
	const own = tables.jumpsOf('nat').find(({from}) => from === 'PREROUTING');
	return own ? describeRedirects(tool, tables.redirectsFrom('nat', 'PREROUTING', own.position)) : [];
}

const describeRedirects = (tool: string, lines: readonly string[]): readonly string[] =>
	lines
		.filter(line => !line.startsWith(`-A ${ownPrefix}`))
		.map(line => `${tool}, table nat: "${line}" redirects connections before our rules`);
