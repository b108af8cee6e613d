import {
	type Chain,
	chains,
	type Family,
	families,
	type Match,
	type Plan,
	type Rule,
	type Test,
	type Verdict,
} from './rules.ts';

export const tableName = 'onramp';
/** Never reached by a packet: holds what must be known of the rules, in comments. */
export const aboutChain = 'about';

/**
 * Hook and priority of the chains that packets enter. nat_output stands before the usual priority (-100), so that
 * other programs' redirects do not take what is ours; nat_prerouting after it, so that a published port of a
 * container still leads to the container.
 */
const hooks: Partial<Record<Chain, string>> = {
	raw_output: 'type filter hook output priority -300',
	mangle_prerouting: 'type filter hook prerouting priority -150',
	mangle_output: 'type route hook output priority -150',
	filter_input: 'type filter hook input priority 0',
	filter_output: 'type filter hook output priority 10',
	nat_prerouting: 'type nat hook prerouting priority -95',
	nat_output: 'type nat hook output priority -105',
};

/** The kernel keeps 128 bytes. */
const longestComment = 120;

/** One transaction for both families: the old rules go and the new ones come in the same instant. */
export function renderNft(plan: Plan): string {
	return [...families.map(renderRemoval), ...families.map(family => renderTable(plan, family))].join('');
}

/** A family without rules has no table, so that a kernel without IPv6 is not asked for one. */
function renderTable(plan: Plan, family: Family): string {
	const rules = plan.rules.filter(rule => rule.family === family);
	if (rules.length === 0) return '';
	const body = chains.flatMap(chain =>
		renderChain(
			chain,
			rules.filter(rule => rule.chain === chain),
		),
	);
	return [
		`table ${family} ${tableName} {`,
		...(rules.some(({verdict}) => verdict.kind === 'forget-soon') ? [renderTimeouts(family)] : []),
		...body,
		`\tchain ${aboutChain} {`,
		'\t}',
		'}',
		// Last of all: the kernel numbers rules as they come, so a higher number is of a rule that came later.
		`add rule ${family} ${tableName} ${aboutChain} counter comment "${renderAbout(plan)}"`,
		'',
	].join('\n');
}

/**
 * A connection that was reset, or whose first packet got no answer, leaves an entry behind by which the kernel would
 * take a later connection between the same ports for an old one, which no nat rule looks at. Seconds.
 */
const renderTimeouts = (family: Family): string =>
	`\tct timeout ${timeoutName} { protocol tcp; l3proto ${family}; policy = { syn_sent : 2, close : 0 }; }`;

const timeoutName = 'forget-soon';

/** Works whether the table is there or not. */
export const renderRemoval = (family: Family): string =>
	`add table ${family} ${tableName}\ndelete table ${family} ${tableName}\n`;

export const renderAbout = ({kind, digest}: Plan): string => `onramp 1 ${kind} plan=${digest}`;

function renderChain(chain: Chain, rules: readonly Rule[]): string[] {
	if (rules.length === 0) return [];
	const hook = hooks[chain];
	return [
		`\tchain ${chain} {`,
		...(hook ? [`\t\t${hook}; policy accept;`] : []),
		...rules.map(rule => `\t\t${renderNftRule(rule)}`),
		'\t}',
	];
}

export function renderNftRule({family, match, verdict, id, reason}: Rule): string {
	const isTcp = match.protocol === 'tcp';
	return [
		...renderMatch(family, match),
		'counter',
		renderVerdict(verdict, isTcp),
		`comment "${comment(id, reason)}"`,
	].join(' ');
}

/** As loaded with the rule, in every backend. */
export const comment = (id: string, reason: string): string =>
	`${id}: ${reason}`
		.replaceAll(/[^\x20-\x7e]/g, '?')
		.replaceAll(/["\\]/g, "'")
		.slice(0, longestComment)
		.trimEnd();

function renderMatch(family: Family, match: Match): string[] {
	const {protocol, inInterface, outInterface, source, destination, destinationPort, uid, gid, cgroup} = match;
	const {
		mark,
		connectionMark,
		state,
		isDestinationLocal,
		isSyn,
		isNoReset,
		isRewritten,
		isOwned,
		isOriginal,
		sourcePort,
	} = match;
	const parts: string[] = [];
	if (inInterface !== undefined) parts.push(`iifname "${inInterface}"`);
	if (outInterface !== undefined) parts.push(`oifname "${outInterface}"`);
	if (protocol !== undefined && !destinationPort && !sourcePort && isSyn === undefined && !isNoReset)
		parts.push(`meta l4proto ${protocol}`);
	if (source) parts.push(`${family} saddr ${test(source, text => text)}`);
	if (destination) parts.push(`${family} daddr ${test(destination, text => text)}`);
	if (destinationPort) parts.push(`${protocol} dport ${test(destinationPort, list)}`);
	if (sourcePort) parts.push(`${protocol} sport ${list(sourcePort)}`);
	if (isSyn !== undefined) parts.push(`tcp flags & (syn | ack) ${isSyn ? '==' : '!='} syn`);
	if (isNoReset) parts.push('tcp flags & rst == 0');
	if (uid) parts.push(`meta skuid ${test(uid, list)}`);
	if (gid) parts.push(`meta skgid ${test(gid, list)}`);
	if (cgroup !== undefined) parts.push(`socket cgroupv2 level ${cgroup.split('/').length} "${cgroup}"`);
	if (mark) parts.push(`meta mark ${test(mark, String)}`);
	if (connectionMark !== undefined) parts.push(`ct mark ${connectionMark}`);
	if (state) parts.push(`ct state ${state.join(',')}`);
	if (isDestinationLocal !== undefined) parts.push(`fib daddr type ${isDestinationLocal ? '' : '!= '}local`);
	if (isRewritten) parts.push('ct status & dnat == dnat');
	if (isOriginal) parts.push('ct direction original');
	// Holds for every id there is, and does not for packets without an owner.
	if (isOwned) parts.push('meta skuid != 4294967295');
	return parts;
}

function test<T>(wanted: Test<T>, render: (value: T) => string): string {
	return 'is' in wanted ? render(wanted.is) : `!= ${render(wanted.not)}`;
}

const list = (values: readonly number[]): string =>
	values.length === 1 ? String(values[0]) : `{ ${values.join(', ')} }`;

function renderVerdict(verdict: Verdict, isTcp: boolean): string {
	switch (verdict.kind) {
		case 'redirect':
			return `redirect to :${verdict.port}`;
		case 'tproxy':
			return `tproxy to :${verdict.port} meta mark set ${verdict.mark} accept`;
		case 'mark':
			return `meta mark set ${verdict.mark}`;
		case 'save-mark':
			return 'ct mark set meta mark';
		case 'restore-mark':
			return 'meta mark set ct mark';
		case 'forget-soon':
			return `ct timeout set "${timeoutName}"`;
		case 'zone':
			return `ct original zone set ${verdict.zone}`;
		case 'goto':
			return `goto ${verdict.chain}`;
		case 'reject':
			return isTcp ? 'reject with tcp reset' : 'reject';
		default:
			return verdict.kind;
	}
}
