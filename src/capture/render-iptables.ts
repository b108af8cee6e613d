import {type LiveTables, ownPrefix} from './iptables-save.ts';
import {comment, renderAbout} from './render-nft.ts';
import type {Chain, Family, Match, Plan, Rule, Test, Verdict} from './rules.ts';

/**
 * Tables in the order of loading: each is a transaction of its own, so what redirects comes before the guard that
 * refuses what was not redirected, and a guard that is there already is made to bear both. Taken away in reverse.
 */
export const tables = ['raw', 'mangle', 'nat', 'filter'] as const;
export type Table = (typeof tables)[number];

/** Never reached by a packet: holds what must be known of the rules, in comments. */
export const aboutName = `${ownPrefix}ABOUT`;

const tableOf = (chain: Chain): Table => chain.split('_')[0] as Table;
export const nameOf = (chain: Chain): string => `${ownPrefix}${chain.split('_')[1]!.toUpperCase()}`;

/** The kernel's chain from which ours is reached. */
export const builtIns: Partial<Record<Chain, string>> = {
	raw_output: 'OUTPUT',
	mangle_prerouting: 'PREROUTING',
	mangle_output: 'OUTPUT',
	filter_input: 'INPUT',
	filter_output: 'OUTPUT',
	nat_prerouting: 'PREROUTING',
	nat_output: 'OUTPUT',
};

/**
 * Text for iptables-restore --noflush that makes the family's rules those of the plan, whatever is there now.
 * @param made - by table, the kernel's chains that exist only because of us; `*` for the table itself
 * @param keepsUnwanted - tables in which nothing is wanted any more are taken care of afterwards
 */
export function renderIptables(
	plan: Plan,
	family: Family,
	live: LiveTables,
	made: ReadonlyMap<string, readonly string[]>,
	keepsUnwanted: boolean,
): string {
	const rules = plan.rules.filter(rule => rule.family === family);
	const text = tables
		.filter(table => !keepsUnwanted || rules.some(({chain}) => tableOf(chain) === table))
		.map(table =>
			renderTable(
				table,
				plan,
				rules.filter(({chain}) => tableOf(chain) === table),
				live,
				made,
			),
		)
		.join('');
	return text === '' ? '' : renderTransition(rules, live) + text;
}

/**
 * While the other tables change, the guard refuses only what both sets of rules refuse: a connection that one of them
 * does not want to have redirected would otherwise be cut by the guard of the other, in between or, where
 * iptables-restore is killed there, until the next run.
 */
function renderTransition(rules: readonly Rule[], live: LiveTables): string {
	const isNext = (name: string) => name.startsWith(`${ownPrefix}NEXT_`);
	const old = live.chainsOf('filter').filter(name => name.startsWith(ownPrefix) && name !== aboutName && !isNext(name));
	const lines = live.rulesOf('filter').filter(line => old.includes(line.split(' ')[1]!));
	if (!lines.some(line => refusal.test(line))) return '';
	const next = rules.filter(({chain}) => tableOf(chain) === 'filter');
	const wanted = [...new Set(next.map(({chain}) => nextName(chain)))];
	const unwanted = live.chainsOf('filter').filter(name => isNext(name) && !wanted.includes(name));
	const further = (line: string): string => {
		const to = nextName(line.startsWith(`-A ${nameOf('filter_input')} `) ? 'filter_input' : 'filter_output');
		return line.replace(refusal, wanted.includes(to) ? ` -g ${to}` : ' -j RETURN');
	};
	return [
		'*filter',
		...[...old, ...wanted, ...unwanted].map(name => `:${name} - [0:0]`),
		...next.map(rule => renderIptablesRule(rule, nextName)),
		...lines.map(further),
		...unwanted.map(name => `-X ${name}`),
		'COMMIT',
		'',
	].join('\n');
}

const refusal = / -j (?:DROP|REJECT(?: --reject-with \S+)?)$/;

const nextName = (chain: Chain): string => nameOf(chain).replace(ownPrefix, `${ownPrefix}NEXT_`);

function renderTable(
	table: Table,
	plan: Plan,
	rules: readonly Rule[],
	live: LiveTables,
	made: ReadonlyMap<string, readonly string[]>,
): string {
	const chains = [...new Set(rules.map(({chain}) => chain))];
	const wanted = chains.length === 0 ? [] : [aboutName, ...chains.map(nameOf)];
	const own = live.chainsOf(table).filter(name => name.startsWith(ownPrefix));
	// Also what the transition has made meanwhile.
	const isChanging = table === 'filter' && own.length > 0;
	const present = new Set([...own, ...(isChanging ? chains.map(nextName) : [])]);
	const unwanted = [...present].filter(name => !wanted.includes(name));
	if (wanted.length === 0 && unwanted.length === 0) return '';
	const ownMade = made.get(table) ?? [];
	const about = `${renderAbout(plan)}${ownMade.length > 0 ? ` made=${ownMade.join(',')}` : ''}`;
	const jumps = new Map(chains.flatMap(chain => (builtIns[chain] ? [[nameOf(chain), builtIns[chain]] as const] : [])));
	return [
		`*${table}`,
		// Declared anew, a chain of ours is emptied; all of it happens at COMMIT.
		...[...wanted, ...unwanted].map(name => `:${name} - [0:0]`),
		...(wanted.length === 0 ? [] : [`-A ${aboutName} -m comment --comment "${about}"`]),
		...rules.map(rule => renderIptablesRule(rule)),
		...renderJumps(table, jumps, live),
		...unwanted.map(name => `-X ${name}`),
		'COMMIT',
		'',
	].join('\n');
}

/** Leaves a jump that is where it ought to be alone, so that applying again changes nothing. */
function renderJumps(table: Table, wanted: ReadonlyMap<string, string>, live: LiveTables): string[] {
	const lines: string[] = [];
	const present = live.jumpsOf(table);
	const isRight = (name: string, builtIn: string) => {
		const own = present.filter(jump => jump.to === name);
		return own.length === 1 && own[0]!.from === builtIn && own[0]!.position === live.placeFor(table, builtIn);
	};
	for (const {line, to} of present) {
		const builtIn = wanted.get(to);
		if (builtIn === undefined || !isRight(to, builtIn)) lines.push(line.replace(/^-A /, '-D '));
	}
	for (const [name, builtIn] of wanted)
		if (!isRight(name, builtIn))
			lines.push(
				`-I ${builtIn} ${live.placeFor(table, builtIn) + 1} -m comment --comment "onramp: traffic goes through Envoy" -j ${name}`,
			);
	return lines;
}

function renderIptablesRule({family, chain, match, verdict, id, reason}: Rule, name = nameOf): string {
	return [
		`-A ${name(chain)}`,
		...renderMatch(match),
		`-m comment --comment "${comment(id, reason)}"`,
		renderVerdict(verdict, match.protocol === 'tcp', family, name),
	].join(' ');
}

function renderMatch(match: Match): string[] {
	const parts: string[] = [];
	if (match.inInterface !== undefined) parts.push(`-i ${match.inInterface.replace('*', '+')}`);
	if (match.outInterface !== undefined) parts.push(`-o ${match.outInterface.replace('*', '+')}`);
	if (match.source) parts.push(test(match.source, address => `-s ${address}`));
	if (match.destination) parts.push(test(match.destination, address => `-d ${address}`));
	if (match.protocol !== undefined) parts.push(`-p ${match.protocol}`);
	if (match.destinationPort) parts.push(renderPorts(match.destinationPort));
	if (match.sourcePort) parts.push(`-m multiport --sports ${match.sourcePort.join(',')}`);
	if (match.isSyn !== undefined) parts.push(match.isSyn ? '--syn' : '! --syn');
	if (match.uid) parts.push(renderOwner('--uid-owner', match.uid));
	if (match.gid) parts.push(renderOwner('--gid-owner', match.gid));
	if (match.cgroup !== undefined) parts.push(`-m cgroup --path "${match.cgroup}"`);
	if (match.mark) parts.push(`-m mark ${test(match.mark, mark => `--mark ${mark}`)}`);
	if (match.connectionMark !== undefined) parts.push(`-m connmark --mark ${match.connectionMark}`);
	if (match.state) parts.push(`-m conntrack --ctstate ${match.state.join(',').toUpperCase()}`);
	if (match.isDestinationLocal !== undefined)
		parts.push(`-m addrtype ${match.isDestinationLocal ? '' : '! '}--dst-type LOCAL`);
	if (match.isNoReset) parts.push('! --tcp-flags RST RST');
	if (match.isRewritten) parts.push('-m conntrack --ctstate DNAT');
	if (match.isOriginal) parts.push('-m conntrack --ctdir ORIGINAL');
	if (match.isOwned) parts.push('-m owner --socket-exists');
	return parts;
}

function test<T>(wanted: Test<T>, render: (value: T) => string): string {
	return 'is' in wanted ? render(wanted.is) : `! ${render(wanted.not)}`;
}

function renderPorts(wanted: Test<readonly number[]>): string {
	const ports = 'is' in wanted ? wanted.is : wanted.not;
	if (ports.length === 1) return test(wanted, () => `--dport ${ports[0]}`);
	return `-m multiport ${test(wanted, () => `--dports ${ports.join(',')}`)}`;
}

/** One match takes one id, so "none of" is several matches, all of which must hold. */
function renderOwner(option: string, wanted: Test<readonly number[]>): string {
	if ('is' in wanted) return `-m owner ${option} ${wanted.is[0]}`;
	return wanted.not.map(id => `-m owner ! ${option} ${id}`).join(' ');
}

function renderVerdict(verdict: Verdict, isTcp: boolean, family: Family, name: typeof nameOf): string {
	switch (verdict.kind) {
		case 'redirect':
			return `-j REDIRECT --to-ports ${verdict.port}`;
		case 'tproxy':
			return `-j TPROXY --on-port ${verdict.port} --tproxy-mark ${verdict.mark}`;
		case 'mark':
			return `-j MARK --set-mark ${verdict.mark}`;
		case 'save-mark':
			return '-j CONNMARK --save-mark';
		case 'restore-mark':
			return '-j CONNMARK --restore-mark';
		case 'forget-soon':
			throw new Error('iptables has no such rule');
		case 'zone':
			return `-j CT --zone-orig ${verdict.zone}`;
		case 'goto':
			return `-g ${name(verdict.chain)}`;
		case 'reject':
			if (isTcp) return '-j REJECT --reject-with tcp-reset';
			return `-j REJECT --reject-with ${family === 'ip' ? 'icmp-port-unreachable' : 'icmp6-port-unreachable'}`;
		default:
			return `-j ${verdict.kind.toUpperCase()}`;
	}
}
