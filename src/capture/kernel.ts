import type {AgentError} from '../errors.ts';
import {hasLegacyTables, LiveTables, parseSave} from './iptables-save.ts';
import {failureOf, findProgram, type Run} from './programs.ts';
import type {Family} from './rules.ts';

/** One entry of `nft -j`. */
export type NftObject = Readonly<Record<string, Record<string, unknown>>>;

export type Xtables = 'iptables-nft' | 'iptables-legacy';

/** What `ip` says of one family; an entry is what it is by its fields. */
export type IpEntries = readonly Readonly<Record<string, unknown>>[];

/** Marks our rule and route among others, shown by `ip rule` and `ip route`; free in /etc/iproute2/rt_protos. */
export const routeProtocol = 111;

/** One program for each family answers all that is asked of addresses, links, routes and policy rules. */
const ipQuestions: Readonly<Record<Family, string>> = {
	ip: 'link show',
	ip6: 'addr show',
};

const none = new LiveTables(new Map());

/**
 * What the kernel says now. Programs are what looking costs, so each is started at most once, and all that depend on
 * nothing at the same time. Made anew after each change.
 */
export class Kernel {
	/** Wall clock, as files have it. */
	readonly atMs = Date.now();
	readonly #run: Run;
	readonly #saves = new Map<string, Promise<LiveTables>>();
	#rules: Promise<readonly NftObject[] | AgentError | undefined> | undefined;
	readonly #ip = new Map<Family, Promise<IpEntries | undefined>>();

	constructor(run: Run) {
		this.#run = run;
	}

	/** Starts all questions of a change at once, the longest first. */
	ask(): this {
		for (const answer of [this.rules(), this.ip('ip'), this.ip('ip6')]) answer.catch(() => {}); // told to who waits for it
		return this;
	}

	/**
	 * All of nftables, what iptables-nft has made included, the elements of named sets left out. undefined: this
	 * machine has no nft. An error: the kernel does not tell.
	 */
	rules(): Promise<readonly NftObject[] | AgentError | undefined> {
		this.#rules ??= this.#listRules();
		return this.#rules;
	}

	/** undefined: this machine has no `ip`. */
	ip(family: Family): Promise<IpEntries | undefined> {
		const known = this.#ip.get(family) ?? this.#askIp(family);
		this.#ip.set(family, known);
		return known;
	}

	/** What `iptables-save` shows; nothing where there cannot be anything. @throws AgentError */
	async tables(name: Xtables, family: Family): Promise<LiveTables> {
		const key = `${name} ${family}`;
		const known = this.#saves.get(key) ?? this.#save(name, family);
		this.#saves.set(key, known);
		return known;
	}

	/** As `tables`, but nothing unless a chain has this prefix, which costs no program where nft is there. */
	async tablesWith(prefix: string, name: Xtables, family: Family): Promise<LiveTables> {
		const rules = name === 'iptables-nft' ? await this.rules() : undefined;
		const isThere = (object: NftObject) =>
			object['chain']?.['family'] === family && String(object['chain']['name']).startsWith(prefix);
		return Array.isArray(rules) && !rules.some(isThere) ? none : this.tables(name, family);
	}

	async #listRules(): Promise<readonly NftObject[] | AgentError | undefined> {
		if (findProgram('nft') === undefined) return undefined;
		const args = ['-j', '-t', 'list', 'ruleset'];
		const outcome = await this.#run('nft', args);
		if (outcome.code !== 0) return failureOf('nft', args, outcome);
		return (JSON.parse(outcome.stdout) as {nftables: readonly NftObject[]}).nftables;
	}

	async #askIp(family: Family): Promise<IpEntries | undefined> {
		if (findProgram('ip') === undefined) return undefined;
		const {stdout} = await this.#run(
			'ip',
			// Some questions fail on a kernel without that family; the others are answered.
			[family === 'ip' ? '-4' : '-6', '-d', '-j', '-force', '-batch', '-'],
			`${ipQuestions[family]}\nroute show default\nrule show\nroute show table all proto ${routeProtocol}\n`,
		);
		return stdout
			.split('\n')
			.filter(line => line.startsWith('['))
			.flatMap(line => JSON.parse(line) as IpEntries)
			.filter(entry => Object.keys(entry).length > 0);
	}

	async #save(name: Xtables, family: Family): Promise<LiveTables> {
		if (name === 'iptables-legacy' && !hasLegacyTables(family)) return none;
		const program = programOf(name, family, 'save');
		if (findProgram(program) === undefined) return none;
		const outcome = await this.#run(program, ['-c']);
		if (outcome.code === 0) return parseSave(outcome.stdout);
		// A kernel without IPv6 has no such tables.
		if (family === 'ip6' && !/permission|permitted/i.test(outcome.stderr)) return none;
		throw failureOf(program, [], outcome);
	}
}

export const programOf = (name: Xtables, family: Family, action: 'save' | 'restore'): string =>
	`${name.replace('iptables', family === 'ip' ? 'iptables' : 'ip6tables')}-${action}`;
