import type {AgentError} from '../errors.ts';
import {findProgram} from '../lifecycle/find-program.ts';
import {findTool} from './find-tool.ts';
import {hasLegacyTables, LiveTables, parseSave} from './iptables-save.ts';
import {failureOf, type Run} from './programs.ts';
import {type Family, families} from './rules.ts';

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

/** All that costs nothing to ask beforehand; undefined where it has to be asked singly, which also tells why. */
interface Answers {
	readonly rules: readonly NftObject[] | undefined;
	readonly ip: Readonly<Partial<Record<Family, IpEntries>>>;
}

/**
 * What the kernel says now. Programs are what looking costs, and of these the fork of a process as large as this one, so
 * each is started at most once, and all that depend on nothing by one shell. Made anew after each change.
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

	/** Starts all questions of a change at once. */
	ask(): this {
		const all = this.#askAll();
		this.#rules = all.then(({rules}) => rules ?? this.#listRules());
		for (const family of families)
			this.#ip.set(
				family,
				all.then(({ip}) => ip[family] ?? this.#askIp(family)),
			);
		for (const answer of [this.#rules, ...this.#ip.values()]) answer.catch(() => {}); // told to who waits for it
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

	async #askAll(): Promise<Answers> {
		const questions = [
			findProgram('nft') && [findProgram('nft'), ...listRuleset].join(' '),
			...families.map(
				family =>
					findProgram('ip') && `${findProgram('ip')} ${ipArguments(family).join(' ')} <<end\n${ipBatch(family)}end`,
			),
		];
		// What a line of its own says of the one before is no JSON.
		const {stdout} = await this.#run('sh', [
			'-c',
			questions.map(each => `${each ?? 'false'}\nprintf '\\n= %s\\n' $?`).join('\n'),
		]);
		const parts = stdout.split(/\n= (\d+)\n/);
		const [rules, ip, ip6] = [0, 2, 4].map(at => ({text: parts[at] ?? '', isWhole: parts[at + 1] === '0'}));
		const entries = (family: Family, text: string) =>
			findProgram('ip') === undefined ? {} : {[family]: parseIp(text)};
		return {
			rules: rules!.isWhole ? parseRuleset(rules!.text) : undefined,
			ip: {...entries('ip', ip!.text), ...entries('ip6', ip6!.text)},
		};
	}

	async #listRules(): Promise<readonly NftObject[] | AgentError | undefined> {
		if (findProgram('nft') === undefined) return undefined;
		const outcome = await this.#run('nft', listRuleset);
		if (outcome.code !== 0) return failureOf('nft', listRuleset, outcome);
		return parseRuleset(outcome.stdout);
	}

	async #askIp(family: Family): Promise<IpEntries | undefined> {
		if (findProgram('ip') === undefined) return undefined;
		return parseIp((await this.#run('ip', ipArguments(family), ipBatch(family))).stdout);
	}

	async #save(name: Xtables, family: Family): Promise<LiveTables> {
		if (name === 'iptables-legacy' && !hasLegacyTables(family)) return none;
		const program = programOf(name, family, 'save');
		if (findTool(program) === undefined) return none;
		const outcome = await this.#run(program, ['-c']);
		if (outcome.code === 0) return parseSave(outcome.stdout);
		// A kernel without IPv6 has no such tables.
		if (family === 'ip6' && !/permission|permitted/i.test(outcome.stderr)) return none;
		throw failureOf(program, [], outcome);
	}
}

const listRuleset: readonly string[] = ['-j', '-t', 'list', 'ruleset'];

const parseRuleset = (text: string): readonly NftObject[] =>
	(JSON.parse(text) as {nftables: readonly NftObject[]}).nftables;

/** Some questions fail on a kernel without that family; the others are answered. */
const ipArguments = (family: Family): readonly string[] => [
	family === 'ip' ? '-4' : '-6',
	...['-d', '-j', '-force', '-batch', '-'],
];

const ipBatch = (family: Family): string =>
	`${ipQuestions[family]}\nroute show default\nrule show\nroute show table all proto ${routeProtocol}\n`;

const parseIp = (text: string): IpEntries =>
	text
		.split('\n')
		.filter(line => line.startsWith('['))
		.flatMap(line => JSON.parse(line) as IpEntries)
		.filter(entry => Object.keys(entry).length > 0);

export const programOf = (name: Xtables, family: Family, action: 'save' | 'restore'): string =>
	`${name.replace('iptables', family === 'ip' ? 'iptables' : 'ip6tables')}-${action}`;
