import test from 'ava';
import fc from 'fast-check';
import {evaluate, isWithin, type Packet} from '../../../src/capture/evaluate.ts';
import {parseSave} from '../../../src/capture/iptables-save.ts';
import {planBlock, planCapture} from '../../../src/capture/plan.ts';
import {host, settings} from './settings.ts';

const out = (fields: Partial<Packet> = {}): Packet => ({
	direction: 'out',
	protocol: 'tcp',
	destination: '203.0.113.7',
	port: 80,
	interface: 'eth0',
	uid: 1001,
	gid: 1001,
	...fields,
});
const inbound = (port: number, fields: Partial<Packet> = {}): Packet => ({
	direction: 'in',
	protocol: 'tcp',
	destination: '198.18.0.11',
	port,
	interface: 'eth0',
	...fields,
});

test('evaluate › says what becomes of a packet, and names the rule', t => {
	const plan = planCapture(settings({dns: 'servers'}), host);
	const cases: readonly [Packet, string, string | undefined][] = [
		[out(), 'captured', 'outbound.capture'],
		[out({destination: '2001:db8::7'}), 'captured', 'outbound.capture'],
		[out({uid: 990}), 'untouched', 'outbound.own'],
		[out({gid: 991}), 'untouched', 'outbound.own'],
		[out({destination: '169.254.169.254'}), 'untouched', 'outbound.excluded-cidr'],
		[out({destination: 'fd00:ec2::254'}), 'untouched', 'outbound.excluded-cidr'],
		[out({protocol: 'udp', destination: '10.0.0.2', port: 53}), 'captured', 'outbound.dns'],
		[out({protocol: 'udp', destination: '10.0.0.3', port: 53}), 'untouched', undefined],
		[out({destination: '198.18.0.11', interface: 'lo'}), 'untouched', 'outbound.local'],
		[out({destination: '198.18.0.11', interface: 'lo', uid: 990}), 'captured', 'outbound.own-call'],
		[inbound(8080), 'captured', 'inbound.capture'],
		[inbound(22), 'untouched', 'inbound.never'],
		[inbound(15_008), 'untouched', 'inbound.tunnel'],
		[inbound(8080, {interface: 'docker0'}), 'untouched', 'inbound.bridge'],
		[inbound(8080, {interface: 'br-1a2b'}), 'untouched', 'inbound.bridge'],
	];
	for (const [packet, fate, id] of cases) {
		const decision = evaluate(plan, packet);
		t.deepEqual([decision.fate, decision.rule?.id], [fate, id], JSON.stringify(packet));
	}
});

test('evaluate › whatever the settings, SSH, the metadata server and the agent itself are never captured or refused', t => {
	const cidrs = fc.constantFrom('10.0.0.0/8', '169.254.0.0/16', '198.18.0.0/15', 'fd00::/8', '2001:db8::/32');
	const ports = fc.array(fc.integer({min: 1, max: 65_535}), {maxLength: 20});
	const changes = fc.record({
		interception: fc.constantFrom('redirect' as const, 'tproxy' as const),
		inboundPorts: fc.oneof(fc.constant('*' as const), ports, fc.constant([22])),
		inboundExcludePorts: ports,
		outboundCidrs: fc.oneof(fc.constant('*' as const), fc.array(cidrs)),
		outboundExcludeCidrs: fc.array(cidrs),
		outboundPorts: ports,
		outboundExcludePorts: ports,
		dns: fc.constantFrom('off' as const, 'servers' as const, 'all' as const),
		onAgentDown: fc.constantFrom('hold' as const, 'block' as const),
		outboundUsers: fc.constantFrom('*' as const, ['app']),
		bridges: fc.constantFrom('ignore' as const, 'outbound' as const),
		ipv6: fc.constantFrom('capture' as const, 'reject' as const, 'ignore' as const),
	});
	fc.assert(
		fc.property(changes, fc.constantFrom(planCapture, planBlock), (change, make) => {
			const plan = make(settings(change), host);
			t.is(evaluate(plan, inbound(22)).fate, 'untouched');
			t.is(evaluate(plan, inbound(22, {destination: '2001:db8::11'})).fate, 'untouched');
			t.is(evaluate(plan, out({uid: 990, gid: 991})).fate, 'untouched');
			t.is(
				evaluate(plan, out({uid: 990, gid: 991, protocol: 'udp', destination: '10.0.0.2', port: 53})).fate,
				'untouched',
			);
			t.is(evaluate(plan, out({protocol: 'udp', port: 67})).fate, 'untouched', 'DHCP');

			t.is(evaluate(plan, out({destination: '169.254.169.254'})).fate, 'untouched');
		}),
		{numRuns: 200},
	);
});

test('evaluate › networks of both families', t => {
	t.true(isWithin('10.1.2.3', '10.0.0.0/8'));
	t.false(isWithin('11.1.2.3', '10.0.0.0/8'));
	t.true(isWithin('fd00:ec2::254', 'fd00:ec2::254/128'));
	t.false(isWithin('fd00:ec2::255', 'fd00:ec2::254/128'));
	t.false(isWithin('10.0.0.1', '::/1'));
});

test('iptables-save › finds our jumps among the rules of others, and where they belong', t => {
	const saved = parseSave(`# made up
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [7:420]
:DOCKER - [0:0]
:ONRAMP_OUTPUT - [0:0]
:ONRAMP_PREROUTING - [0:0]
[0:0] -A PREROUTING -m comment --comment "onramp" -j ONRAMP_PREROUTING
[1:60] -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
[0:0] -A OUTPUT -m comment --comment "looks like -j ONRAMP_OUTPUT" -j ACCEPT
[0:0] -A OUTPUT -j ONRAMP_OUTPUT
COMMIT
`);
	t.deepEqual(
		saved.jumpsOf('nat').map(({from, to, position}) => [from, to, position]),
		[
			['PREROUTING', 'ONRAMP_PREROUTING', 0],
			['OUTPUT', 'ONRAMP_OUTPUT', 1],
		],
	);
	t.is(saved.placeFor('nat', 'PREROUTING'), 1, 'behind the chain of docker');
	t.is(saved.placeFor('nat', 'OUTPUT'), 0, 'before everything');
});
