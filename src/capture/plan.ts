import {hash} from 'node:crypto';
import type {CaptureConfig} from '../config/index.ts';
import {type HostFacts, type PlanContext, readContext} from './context.ts';
import {addInboundBlock, addInboundGuard, addInboundRedirect, addInboundTproxy, capturesInbound} from './inbound.ts';
import {addEscapeGuard, addOutbound, addOutboundBlock} from './outbound.ts';
import {type Add, collect, familyOf, returns} from './passes.ts';
import {type Family, families, type HostState, type Plan, type Rule} from './rules.ts';

/** Changes when the same data would be loaded as other rules. */
const formatVersion = 1;

/**
 * What must be in the kernel for these settings on this host. Pure.
 * @throws AgentError `capture.user_missing`, `capture.unit_missing`
 */
export function planCapture(config: CaptureConfig, host: HostFacts): Plan {
	const context = readContext(config, host);
	const rules: Rule[] = [];
	for (const family of capturedFamilies(config, host)) {
		const add = collect(family, rules);
		addOutbound(add, family, config, context);
		addEscapeGuard(add, family, config, context, host.hasConntrackTimeouts);
		(config.interception === 'tproxy' ? addInboundTproxy : addInboundRedirect)(add, family, config, context);
		addDropInvalid(add, config);
		addInboundGuard(add, config, context, host.hasConntrackTimeouts);
	}
	if (host.ipv6 === 'no-nat' && config.ipv6 !== 'ignore') addIpv6Refusal(collect('ip6', rules), config, context);
	if (host.ipv6 === 'on' && config.ipv6 === 'reject') addIpv6Refusal(collect('ip6', rules), config, context);
	return finish('capture', rules, hostState(config, host), notesOn(config, host, context));
}

/** What stays behind when capture is taken away under the policy `block`. Pure; throws as planCapture. */
export function planBlock(config: CaptureConfig, host: HostFacts): Plan {
	const context = readContext(config, host);
	const rules: Rule[] = [];
	for (const family of host.ipv6 === 'off' ? (['ip'] as const) : families) {
		const add = collect(family, rules);
		addOutboundBlock(add, family, config, context);
		addInboundBlock(add, config, context);
	}
	const nothing: HostState = {policyRouting: undefined, families: [], hasPassThroughAddress: false};
	return finish('block', rules, nothing, ['traffic that ought to be captured is refused, as Envoy is not there']);
}

function capturedFamilies(config: CaptureConfig, {ipv6}: HostFacts): readonly Family[] {
	return ipv6 === 'on' && config.ipv6 === 'capture' ? families : ['ip'];
}

function hostState(config: CaptureConfig, host: HostFacts): HostState {
	const isTproxy = config.interception === 'tproxy' && capturesInbound(config);
	const captured = capturedFamilies(config, host);
	return {
		policyRouting: isTproxy ? {mark: config.tproxyMark, table: config.tproxyTable} : undefined,
		families: isTproxy ? captured : [],
		hasPassThroughAddress: captured.includes('ip6'),
	};
}

function addDropInvalid(add: Add, {dropInvalid}: CaptureConfig): void {
	if (dropInvalid)
		add(
			'mangle_prerouting',
			'inbound.invalid',
			{state: ['invalid']},
			{kind: 'drop'},
			'a packet that belongs to no connection would make this machine reset a live one',
		);
}

/** The application falls back to IPv4 at once instead of going past Envoy. */
function addIpv6Refusal(add: Add, config: CaptureConfig, {owners}: PlanContext): void {
	add('filter_output', 'ipv6.local', {outInterface: 'lo'}, returns, 'the machine talks to itself');
	for (const owner of owners) add('filter_output', 'ipv6.own', owner, returns, 'connections of Envoy and the agent');
	for (const cidr of config.outboundExcludeCidrs)
		if (familyOf(cidr) === 'ip6')
			add('filter_output', 'outbound.excluded-cidr', {destination: {is: cidr}}, returns, 'excluded by the settings');
	add(
		'filter_output',
		'ipv6.refuse',
		{protocol: 'tcp', isSyn: true},
		{kind: 'reject'},
		'IPv6 cannot be captured, and would go past Envoy',
	);
}

function notesOn(config: CaptureConfig, host: HostFacts, context: PlanContext): readonly string[] {
	const notes: string[] = [];
	const {inboundPorts} = config;
	if (host.ipv6 === 'no-nat')
		notes.push(
			config.ipv6 === 'ignore'
				? 'this kernel cannot redirect IPv6: it goes past Envoy, as capture.ipv6 says'
				: 'this kernel cannot redirect IPv6: outgoing connections over IPv6 are refused',
		);
	if (host.ipv6 === 'on' && config.ipv6 === 'ignore') notes.push('IPv6 goes past Envoy, as capture.ipv6 says');
	if (inboundPorts !== '*') {
		const listed = context.neverCaptured.filter(({port}) => inboundPorts.includes(port));
		for (const {port, reason} of listed) notes.push(`port ${port} is listed, but is never captured (${reason})`);
		// istioctl writes both, and what it leaves out is never on its list.
		for (const port of config.inboundExcludePorts.filter(each => inboundPorts.includes(each)))
			notes.push(`port ${port} is listed and left out, which has no effect beside a list: it is captured, as in Istio`);
	}
	if (host.isSshHidden && inboundPorts === '*')
		notes.push(
			'this user cannot see where sshd listens: ports other than 22 belong in capture.inbound-exclude-ports, or they are captured',
		);
	if (config.dns === 'servers' && host.nameservers.length === 0)
		notes.push('resolv.conf names no server, so no question is captured');
	return notes;
}

function finish(kind: Plan['kind'], rules: readonly Rule[], host: HostState, notes: readonly string[]): Plan {
	return {kind, rules, host, notes, digest: digestOf({kind, rules, host})};
}

/** Of what a plan puts into the kernel. A plan that was read from a file is whole if this is what the kernel has. */
export const digestOf = ({kind, rules, host}: Pick<Plan, 'kind' | 'rules' | 'host'>): string =>
	hash('sha256', JSON.stringify({formatVersion, kind, rules, host})).slice(0, 16);
