import {describeVerdict} from './inbound.ts';
import type {Match, Plan, Rule, Test} from './rules.ts';

/** The plan for people: one line a rule, with its reason below it where it changes. */
export function renderText(plan: Plan): string {
	const lines = [`plan ${plan.digest} (${plan.kind})`];
	let last = '';
	for (const rule of plan.rules) {
		const place = `${rule.family === 'ip' ? 'IPv4' : 'IPv6'} ${rule.chain}`;
		if (place !== last) lines.push('', place);
		last = place;
		lines.push(
			`  ${describeMatch(rule.match).padEnd(58)} → ${describeVerdict(rule.verdict)}`,
			`      ${rule.id}: ${rule.reason}`,
		);
	}
	const {policyRouting, hasPassThroughAddress} = plan.host;
	if (policyRouting || hasPassThroughAddress) lines.push('', 'host');
	if (hasPassThroughAddress)
		lines.push('  ::6 is an address of lo: Envoy and the probes reach the application from it');
	if (policyRouting)
		lines.push(
			`  packets with mark ${policyRouting.mark} are delivered to this machine (table ${policyRouting.table})`,
		);
	if (plan.notes.length > 0) lines.push('', ...plan.notes.map(note => `note: ${note}`));
	return `${lines.join('\n')}\n`;
}

export function describeRule({match, verdict, id, reason}: Rule): string {
	return `${id} (${describeMatch(match)} → ${describeVerdict(verdict)}): ${reason}`;
}

export function describeMatch(match: Match): string {
	const parts: string[] = [];
	if (match.inInterface !== undefined) parts.push(`in ${match.inInterface}`);
	if (match.outInterface !== undefined) parts.push(`out ${match.outInterface}`);
	if (match.protocol !== undefined) parts.push(match.protocol);
	if (match.source) parts.push(`from ${test(match.source, String)}`);
	if (match.destination) parts.push(`to ${test(match.destination, String)}`);
	if (match.destinationPort) parts.push(`port ${test(match.destinationPort, list)}`);
	if (match.sourcePort) parts.push(`from port ${list(match.sourcePort)}`);
	if (match.uid) parts.push(`user ${test(match.uid, list)}`);
	if (match.gid) parts.push(`group ${test(match.gid, list)}`);
	if (match.cgroup !== undefined) parts.push(`control group ${match.cgroup}`);
	if (match.mark) parts.push(`mark ${test(match.mark, String)}`);
	if (match.connectionMark !== undefined) parts.push(`connection mark ${match.connectionMark}`);
	if (match.state) parts.push(match.state.join(' or '));
	if (match.isSyn !== undefined) parts.push(match.isSyn ? 'first packet' : 'later packet');
	if (match.isNoReset) parts.push('no reset');
	if (match.isRewritten) parts.push('redirected');
	if (match.isOriginal) parts.push('from the side that began');
	if (match.isOwned) parts.push('socket open');
	if (match.isDestinationLocal !== undefined)
		parts.push(match.isDestinationLocal ? 'for this machine' : 'to be forwarded');
	return parts.join(', ') || 'everything';
}

function test<T>(wanted: Test<T>, render: (value: T) => string): string {
	return 'is' in wanted ? render(wanted.is) : `not ${render(wanted.not)}`;
}

const list = (values: readonly number[]): string => values.join(' ');
