import {readFileSync} from 'node:fs';
import {systemCode} from '../errors.ts';

/** Every chain of ours begins so, and none of anybody else's. */
export const ownPrefix = 'ONRAMP_';

export interface Jump {
	readonly line: string;
	readonly from: string;
	readonly to: string;
	/** Among the rules of `from`, from 0, rules of ours not counted. */
	readonly position: number;
}

interface LiveTable {
	readonly chains: readonly string[];
	/** As `-A CHAIN …`, in order. */
	readonly rules: readonly string[];
}

/** What iptables-save shows of one family, counters left out. */
export class LiveTables {
	readonly #tables: ReadonlyMap<string, LiveTable>;

	constructor(tables: ReadonlyMap<string, LiveTable>) {
		this.#tables = tables;
	}

	has(table: string): boolean {
		return this.#tables.has(table);
	}

	get names(): readonly string[] {
		return [...this.#tables.keys()];
	}

	chainsOf(table: string): readonly string[] {
		return this.#tables.get(table)?.chains ?? [];
	}

	rulesOf(table: string): readonly string[] {
		return this.#tables.get(table)?.rules ?? [];
	}

	/** From the kernel's chains to ours. */
	jumpsOf(table: string, prefix = ownPrefix): readonly Jump[] {
		const positions = new Map<string, number>();
		return this.rulesOf(table).flatMap(line => {
			const from = chainOf(line);
			const to = targetOf(line);
			const position = positions.get(from) ?? 0;
			if (to.startsWith(prefix) && !from.startsWith(prefix)) return [{line, from, to, position}];
			positions.set(from, position + 1);
			return [];
		});
	}

	/**
	 * Where our jump belongs among the rules of others. First of all, so that nothing takes packets from us; but where
	 * connections come in, after the chains of others, as a published port of a container must lead there.
	 */
	placeFor(table: string, builtIn: string): number {
		if (table !== 'nat' || builtIn !== 'PREROUTING') return 0;
		const foreign = this.#foreignRules(table, builtIn);
		const own = new Set(this.chainsOf(table));
		return foreign.findLastIndex(line => own.has(targetOf(line))) + 1;
	}

	/** In words. */
	whyMisplaced(table: string, {from, position}: Jump): string {
		const foreign = this.#foreignRules(table, from);
		return position > this.placeFor(table, from)
			? `only after "${foreign[position - 1]}"`
			: `before "${foreign[this.placeFor(table, from) - 1]}"`;
	}

	/**
	 * Rules of others that lead to another port of this machine, in one of the kernel's chains or in a chain that it
	 * leads to.
	 * @param first - only so many rules of that chain
	 */
	redirectsFrom(table: string, builtIn: string, first = Number.POSITIVE_INFINITY): readonly string[] {
		const own = new Set(this.chainsOf(table));
		const chains = new Set([builtIn]);
		const found: string[] = [];
		// A set is walked to its end, also what is added on the way.
		for (const chain of chains)
			for (const line of this.#foreignRules(table, chain).slice(0, chain === builtIn ? first : undefined)) {
				if (targetOf(line) === 'REDIRECT') found.push(line);
				else if (own.has(targetOf(line))) chains.add(targetOf(line));
			}
		return found;
	}

	#foreignRules(table: string, chain: string): readonly string[] {
		return this.rulesOf(table).filter(line => chainOf(line) === chain && !targetOf(line).startsWith(ownPrefix));
	}
}

const chainOf = (line: string): string => line.split(' ')[1] ?? '';
const targetOf = (line: string): string => / -[jg] (\S+)/.exec(line.replaceAll(/"(?:[^"\\]|\\.)*"/g, '""'))?.[1] ?? '';

export function parseSave(text: string): LiveTables {
	const tables = new Map<string, {chains: string[]; rules: string[]}>();
	let current: {chains: string[]; rules: string[]} | undefined;
	for (const line of text.split('\n')) {
		if (line.startsWith('*')) {
			current = {chains: [], rules: []};
			tables.set(line.slice(1).trim(), current);
		} else if (line.startsWith(':')) current?.chains.push(line.slice(1).split(' ')[0]!);
		else {
			const rule = line.replace(/^\[\d+:\d+\] /, '');
			if (rule.startsWith('-A ')) current?.rules.push(rule.trimEnd());
		}
	}
	return new LiveTables(tables);
}

/**
 * Whether there can be rules of iptables-legacy at all. A table exists once somebody has looked at it, so this is asked
 * of the kernel's list, which costs no process and makes no table.
 */
export function hasLegacyTables(family: 'ip' | 'ip6'): boolean {
	try {
		return readFileSync(`/proc/self/net/${family}_tables_names`, 'utf8').trim() !== '';
	} catch (error) {
		// Without the file the kernel has none; where it may not be read, the tool says so itself.
		return systemCode(error) !== 'ENOENT';
	}
}
