import type {CaptureConfig} from '../config/index.ts';
import type {Bridges, PlanContext} from './context.ts';
import {addForgetting} from './guard-rules.ts';
import {type Add, familyOf, loopbackOf, passThrough, portGroups, returns} from './passes.ts';
import type {Chain, Family, Match, Verdict} from './rules.ts';

/**
 * Connections to this machine go to Envoy's inbound listener. Only a first packet is redirected: where nothing was
 * tracked before the rules, any packet of a connection in progress makes a new entry, and would be torn off.
 */
export function addInboundRedirect(add: Add, family: Family, config: CaptureConfig, context: PlanContext): void {
	const chain = 'nat_prerouting';
	addInterfaces(add, family, chain, config, context.bridges);
	if (!capturesInbound(config)) return;
	addExclusions(add, chain, config, context);
	for (const match of capturedPorts(config))
		add(
			chain,
			'inbound.capture',
			{...match, isSyn: true, isDestinationLocal: true},
			{kind: 'redirect', port: config.inboundPort},
			"connections to the application go through Envoy's inbound listener",
		);
}

/** As Istio's TPROXY mode: the source address stays, so marks lead the answers of the application back to Envoy. */
export function addInboundTproxy(add: Add, family: Family, config: CaptureConfig, context: PlanContext): void {
	addInterfaces(add, family, 'nat_prerouting', config, context.bridges);
	if (!capturesInbound(config)) return;
	const {tproxyMark: mark, inboundPort: port} = config;
	const ownMark = mark + 1;
	const tcp: Match = {protocol: 'tcp'};
	const loopback = loopbackOf[family];
	const chain: Chain = 'mangle_prerouting';

	add('mangle_divert', 'inbound.divert', {}, {kind: 'mark', mark}, 'deliver to the transparent socket it belongs to');
	add('mangle_divert', 'inbound.divert', {}, {kind: 'accept'}, 'deliver to the transparent socket it belongs to');

	for (const name of ignoredInterfaces(config, context.bridges))
		add(chain, 'inbound.interface', {inInterface: name}, returns, `traffic from ${name} is not captured`);
	add(
		chain,
		'inbound.marked',
		{...tcp, mark: {is: mark}},
		{kind: 'save-mark'},
		'the answers of the application must find their way back to Envoy',
	);
	add(chain, 'inbound.marked', {...tcp, mark: {is: mark}}, returns, "Envoy's own connection to the application");
	add(
		chain,
		'inbound.pass-through',
		{...tcp, inInterface: 'lo', source: {is: passThrough[family]}},
		returns,
		'Envoy and the probes reach the application from this source',
	);
	add(
		chain,
		'inbound.own-address',
		{...tcp, inInterface: 'lo', mark: {not: ownMark}},
		returns,
		'the application talks to its own address',
	);
	addExclusions(add, chain, config, context);
	for (const match of capturedPorts(config)) {
		// First: connection tracking may count it to an old connection of the same ports.
		add(
			chain,
			'inbound.capture',
			{...match, isSyn: true, isDestinationLocal: true, destination: {not: loopback}},
			{kind: 'tproxy', port, mark},
			"connections to the application go through Envoy's inbound listener, source address kept",
		);
		add(
			chain,
			'inbound.established',
			{...match, isDestinationLocal: true, state: ['established', 'related']},
			{kind: 'goto', chain: 'mangle_divert'},
			'packets of connections that Envoy has taken',
		);
	}
	add(
		'mangle_output',
		'inbound.marked',
		{...tcp, outInterface: 'lo', mark: {is: mark}},
		returns,
		"Envoy's own connection to the application",
	);
	for (const owner of context.owners)
		add(
			'mangle_output',
			'inbound.own-call',
			{...tcp, ...owner, outInterface: 'lo', destination: {not: loopback}},
			{kind: 'mark', mark: ownMark},
			'the application calls itself through the mesh',
		);
	add(
		'mangle_output',
		'inbound.answer',
		{...tcp, connectionMark: mark},
		{kind: 'restore-mark'},
		'the answers of the application must find their way back to Envoy',
	);
}

/**
 * As on the way out (docs/decisions/0010-escape-guard.md): a first packet that meets the entry of an old connection of
 * the same ports is not redirected, and would reach the application without Envoy having decided on it.
 * @param isForgetful - entries of failed connections can be made short-lived, so that a repeated first packet is captured
 */
export function addInboundGuard(add: Add, config: CaptureConfig, context: PlanContext, isForgetful: boolean): void {
	if (!capturesInbound(config)) return;
	const chain = 'filter_input';
	if (isForgetful) addForgetting(add, chain);
	add(chain, 'guard.later', {protocol: 'tcp', isSyn: false}, returns, 'of a connection that a first packet has begun');
	if (config.interception === 'tproxy')
		add(chain, 'guard.redirected', {mark: {is: config.tproxyMark}}, returns, 'goes to Envoy');
	else add(chain, 'guard.redirected', {isRewritten: true}, returns, 'goes to Envoy');
	addInboundRefusal(
		add,
		config,
		context,
		{kind: isForgetful ? 'drop' : 'reject'},
		'has escaped capture and would reach the application without Envoy',
	);
}

/** Nothing reaches the application, as there is no capture. */
export function addInboundBlock(add: Add, config: CaptureConfig, context: PlanContext): void {
	if (!capturesInbound(config)) return;
	addInboundRefusal(add, config, context, {kind: 'reject'}, 'Envoy has not decided on it, and the settings say block');
}

function addInboundRefusal(
	add: Add,
	config: CaptureConfig,
	context: PlanContext,
	verdict: Verdict,
	reason: string,
): void {
	const chain = 'filter_input';
	add(chain, 'guard.loopback', {inInterface: 'lo'}, returns, 'the machine talks to itself');
	for (const name of ignoredInterfaces(config, context.bridges))
		add(chain, 'inbound.interface', {inInterface: name}, returns, `traffic from ${name} is not captured`);
	addExclusions(add, chain, config, context);
	for (const ports of capturedPorts(config)) add(chain, 'guard.inbound', {...ports, isSyn: true}, verdict, reason);
}

export const capturesInbound = ({inboundPorts}: CaptureConfig): boolean =>
	inboundPorts === '*' || inboundPorts.length > 0;

function ignoredInterfaces(config: CaptureConfig, bridges: Bridges): readonly string[] {
	return [...new Set([...config.excludeInterfaces, ...config.outboundInterfaces, ...bridges.names])];
}

/** Interfaces that are left alone, and those whose traffic is treated as if it were that of this machine. */
function addInterfaces(add: Add, family: Family, chain: Chain, config: CaptureConfig, bridges: Bridges): void {
	for (const name of config.excludeInterfaces)
		add(chain, 'inbound.interface', {inInterface: name}, returns, `${name} is excluded`);
	const treatedAsOutbound = [...config.outboundInterfaces, ...(config.bridges === 'outbound' ? bridges.names : [])];
	const {outboundCidrs} = config;
	const destinations = outboundCidrs === '*' ? [undefined] : outboundCidrs.filter(cidr => familyOf(cidr) === family);
	const excluded = config.outboundExcludeCidrs.filter(cidr => familyOf(cidr) === family);
	for (const name of treatedAsOutbound) {
		for (const cidr of excluded)
			add(
				chain,
				'outbound.excluded-cidr',
				{inInterface: name, destination: {is: cidr}},
				returns,
				`${cidr} is excluded`,
			);
		for (const cidr of destinations)
			add(
				chain,
				'outbound.interface',
				{
					protocol: 'tcp',
					isSyn: true,
					inInterface: name,
					...(cidr === undefined ? {} : {destination: {is: cidr}}),
					isDestinationLocal: false,
				},
				{kind: 'redirect', port: config.outboundPort},
				`what guests behind ${name} send out goes through Envoy, as the settings say`,
			);
	}
	for (const name of new Set([...config.outboundInterfaces, ...bridges.names]))
		add(chain, 'inbound.bridge', {inInterface: name}, returns, `${name} leads to containers or virtual machines`);
}

function addExclusions(add: Add, chain: Chain, config: CaptureConfig, {neverCaptured}: PlanContext): void {
	add(
		chain,
		'inbound.tunnel',
		{protocol: 'tcp', destinationPort: {is: [config.tunnelPort]}},
		returns,
		'the tunnel port (HBONE) is reached directly',
	);
	for (const {port, reason} of neverCaptured)
		add(chain, 'inbound.never', {protocol: 'tcp', destinationPort: {is: [port]}}, returns, reason);
	// As in Istio, a list of ports to capture says it all, and exclusions belong to "*".
	if (config.inboundPorts !== '*') return;
	const never = new Set(neverCaptured.map(({port}) => port));
	for (const ports of portGroups(config.inboundExcludePorts.filter(port => !never.has(port))))
		add(
			chain,
			'inbound.excluded-port',
			{protocol: 'tcp', destinationPort: {is: ports}},
			returns,
			`excluded by the settings`,
		);
}

function capturedPorts({inboundPorts}: CaptureConfig): readonly Match[] {
	if (inboundPorts === '*') return [{protocol: 'tcp'}];
	return portGroups(inboundPorts).map(ports => ({protocol: 'tcp', destinationPort: {is: ports}}));
}

/** Says what `verdict` does, for the lists that people read. */
export function describeVerdict(verdict: Verdict): string {
	switch (verdict.kind) {
		case 'return':
			return 'not captured';
		case 'redirect':
			return `to port ${verdict.port}`;
		case 'tproxy':
			return `to port ${verdict.port}, source kept`;
		case 'mark':
			return `mark ${verdict.mark}`;
		case 'forget-soon':
			return 'forget it soon if it fails';
		case 'zone':
			return `conntrack zone ${verdict.zone}`;
		case 'goto':
			return `go on in ${verdict.chain}`;
		case 'save-mark':
			return 'keep the mark with the connection';
		case 'restore-mark':
			return 'mark as the connection is marked';
		default:
			return verdict.kind;
	}
}
