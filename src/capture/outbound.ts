import type {CaptureConfig} from '../config/index.ts';
import type {PlanContext} from './context.ts';
import {addForgetting, addLoopRefusal, addSpared, addStrayRules} from './guard-rules.ts';
import {type Add, familyOf, loopbackOf, passThrough, portGroups, returns} from './passes.ts';
import type {Chain, Family, Match, Verdict} from './rules.ts';

/** Zone of the original direction of the agent's own questions. Not for TCP: the last packets of a connection have no owner. */
const ownZone = 1;

/**
 * Connections of this machine go to Envoy's outbound listener, and its DNS questions to the agent.
 * Order as Istio has it: what is excluded, what is Envoy's, what is local, DNS, then destinations.
 */
export function addOutbound(add: Add, family: Family, config: CaptureConfig, context: PlanContext): void {
	addZones(add, config, context);
	addSelection(add, family, config, context, capturing(config));
}

/**
 * What the rules above would capture and have not, as no rewriting shows, does not leave. nat rules see only packets
 * that make a new entry in connection tracking; a first packet that meets the entry of a dead connection between the
 * same ports is let pass by them, in plaintext (docs/decisions/0010-escape-guard.md).
 * @param isForgetful - entries of failed connections can be made short-lived, so that a repeated first packet is captured
 */
export function addEscapeGuard(
	add: Add,
	family: Family,
	config: CaptureConfig,
	context: PlanContext,
	isForgetful: boolean,
): void {
	const chain = 'filter_output';
	if (isForgetful) addForgetting(add, chain);
	addLoopRefusal(add, context, config, guarding(isForgetful).toMesh);
	add(chain, 'guard.redirected', {isRewritten: true}, returns, 'goes to Envoy');
	addSpared(add, context, config);
	addSelection(add, family, config, context, guarding(isForgetful));
}

/** As the guard, for a machine without capture: nothing that ought to be captured leaves at all. */
export function addOutboundBlock(add: Add, family: Family, config: CaptureConfig, context: PlanContext): void {
	addSelection(add, family, config, context, blocking);
}

/** What becomes of each kind of selected traffic; undefined = nothing. */
interface Treatment {
	readonly first: Chain;
	readonly chosen: Chain;
	readonly isGuard: boolean;
	readonly toSelf: Verdict | undefined;
	readonly toMesh: Verdict;
	readonly dns: Verdict | undefined;
	readonly why: string | undefined;
}

const capturing = ({inboundPort, outboundPort, dnsPort}: CaptureConfig): Treatment => ({
	first: 'nat_output',
	chosen: 'nat_outbound',
	isGuard: false,
	toSelf: {kind: 'redirect', port: inboundPort},
	toMesh: {kind: 'redirect', port: outboundPort},
	dns: {kind: 'redirect', port: dnsPort},
	why: undefined,
});

/** Dropped, a first packet comes again after a second, when the entry is forgotten; reset, the application fails at once. */
const guarding = (isForgetful: boolean): Treatment => ({
	first: 'filter_output',
	chosen: 'filter_outbound',
	isGuard: true,
	toSelf: undefined,
	toMesh: {kind: isForgetful ? 'drop' : 'reject'},
	// An answer from the real server is no plaintext of the application, and the next question is caught.
	dns: undefined,
	why: 'has escaped capture and would leave in plaintext',
});

const blocking: Treatment = {...guarding(false), why: 'Envoy is not there, and the settings say block'};

function addZones(add: Add, {dns}: CaptureConfig, {owners}: PlanContext): void {
	if (dns === 'off') return;
	for (const owner of owners)
		add(
			'raw_output',
			'zone.own',
			{...owner, protocol: 'udp', destinationPort: {is: [53]}},
			{kind: 'zone', zone: ownZone},
			"a question of the application must not be taken for one of the agent's from the same port",
		);
}

function addSelection(
	add: Add,
	family: Family,
	config: CaptureConfig,
	context: PlanContext,
	treatment: Treatment,
): void {
	const {first, chosen} = treatment;
	const loopback = family === 'ip' ? config.loopbackCidr : loopbackOf.ip6;
	const tcp: Match = {protocol: 'tcp'};
	for (const name of config.excludeInterfaces)
		add(first, 'outbound.interface', {outInterface: name}, returns, `${name} is excluded`);
	for (const ports of portGroups(config.outboundExcludePorts))
		for (const protocol of ['tcp', 'udp'] as const)
			add(
				first,
				'outbound.excluded-port',
				{protocol, destinationPort: {is: ports}},
				returns,
				'excluded by the settings',
			);
	add(
		first,
		'outbound.pass-through',
		{outInterface: 'lo', source: {is: passThrough[family]}},
		returns,
		'Envoy and the probes reach the application from this source',
	);
	if (config.interception === 'tproxy')
		add(
			first,
			'outbound.marked',
			{...tcp, outInterface: 'lo', mark: {is: config.tproxyMark}},
			returns,
			"Envoy's connection to the application, with the address of the caller",
		);
	const direct = config.dns === 'off' ? [config.tunnelPort] : [53, config.tunnelPort];
	if (treatment.toSelf)
		for (const owner of context.owners)
			add(
				first,
				'outbound.own-call',
				{
					...tcp,
					...owner,
					isSyn: true,
					outInterface: 'lo',
					destination: {not: loopback},
					destinationPort: {not: direct},
				},
				treatment.toSelf,
				'the application calls itself through the mesh: Envoy to Envoy',
			);
	for (const owner of context.owners)
		add(first, 'outbound.own', owner, returns, 'connections of Envoy and the agent must not loop');
	if (!includesLoopback(config))
		add(
			first,
			'outbound.local',
			{outInterface: 'lo', ...(config.dns === 'off' ? {} : {...tcp, destinationPort: {not: [53]}})},
			returns,
			'the machine talks to itself',
		);
	for (const owner of context.excludedOwners)
		add(first, 'outbound.excluded-owner', owner, returns, 'excluded by the settings');
	if (context.includedOwners.length > 0) {
		for (const owner of context.includedOwners)
			add(first, 'outbound.included-owner', owner, {kind: 'goto', chain: chosen}, 'chosen by the settings');
		addDestinations(add, chosen, family, config, context, treatment);
	} else addDestinations(add, first, family, config, context, treatment);
}

function addDestinations(
	add: Add,
	chain: Chain,
	family: Family,
	config: CaptureConfig,
	context: PlanContext,
	{isGuard, toMesh, dns, why}: Treatment,
): void {
	if (dns && config.dns !== 'off') {
		const servers =
			config.dns === 'all'
				? [undefined]
				: [...new Set(context.nameservers.filter(address => familyOf(address) === family))];
		for (const server of servers)
			for (const protocol of ['udp', 'tcp'] as const)
				add(
					chain,
					'outbound.dns',
					{
						protocol,
						...(protocol === 'tcp' ? {isSyn: true} : {}),
						destinationPort: {is: [53]},
						...(server === undefined ? {} : {destination: {is: `${server}/${family === 'ip' ? 32 : 128}`}}),
					},
					dns,
					server === undefined
						? 'names are answered by the agent'
						: `names asked of ${server} are answered by the agent`,
				);
	}
	const loopback = family === 'ip' ? config.loopbackCidr : loopbackOf.ip6;
	add(chain, 'outbound.loopback', {destination: {is: loopback}}, returns, 'loopback is meant as such');
	for (const {cidr, reason} of excludedCidrs(config))
		if (familyOf(cidr) === family) add(chain, 'outbound.excluded-cidr', {destination: {is: cidr}}, returns, reason);
	const capture = (id: string, match: Match, reason: string) => {
		add(chain, id, {protocol: 'tcp', isSyn: true, ...match}, toMesh, why ?? reason);
		if (isGuard) addStrayRules(add, chain, id, match, config);
	};
	for (const ports of portGroups(config.outboundPorts))
		capture('outbound.port', {destinationPort: {is: ports}}, 'these ports go through Envoy, whatever the destination');
	if (config.outboundCidrs === '*') capture('outbound.capture', {}, 'connections go through Envoy');
	else
		for (const cidr of config.outboundCidrs)
			if (familyOf(cidr) === family)
				capture('outbound.capture', {destination: {is: cidr}}, `${cidr} is reached through Envoy`);
}

/** Cloud metadata gives out credentials by source; through a mesh it could only fail. */
const metadata = [
	{cidr: '169.254.169.254/32', reason: "the cloud's metadata server"},
	{cidr: 'fd00:ec2::254/128', reason: "the cloud's metadata server"},
];

function excludedCidrs({outboundExcludeCidrs}: CaptureConfig): readonly {cidr: string; reason: string}[] {
	const own = outboundExcludeCidrs.map(cidr => ({cidr, reason: 'excluded by the settings'}));
	return [...metadata.filter(({cidr}) => !outboundExcludeCidrs.includes(cidr)), ...own];
}

/** Then the settings ask for what goes over lo. */
const includesLoopback = ({outboundCidrs}: CaptureConfig): boolean =>
	outboundCidrs !== '*' && outboundCidrs.some(cidr => cidr.startsWith('127.') || cidr.startsWith('::1/'));

export const capturesOutbound = ({outboundCidrs, outboundPorts}: CaptureConfig): boolean =>
	outboundCidrs === '*' || outboundCidrs.length > 0 || outboundPorts.length > 0;
