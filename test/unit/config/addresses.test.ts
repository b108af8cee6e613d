import test from 'ava';
import {lookAtNetwork, parseFlags} from '../../../src/config/host-network.ts';
import {type AddressRule, rankAddresses, selectAddresses} from '../../../src/config/index.ts';
import * as values from '../../../src/config/values.ts';
import {hostWith} from './sources.ts';

interface Case {
	readonly interfaces: Record<string, string[]>;
	readonly rules?: readonly AddressRule[];
	/** Destination → source. */
	readonly routes?: Readonly<Record<string, string>>;
	readonly towards?: readonly string[];
	readonly flags?: Readonly<Record<string, number>>;
	readonly explicit?: string;
}

const route: AddressRule = {kind: 'route'};

function rank({interfaces, rules = [route], routes = {}, towards = [], flags = {}}: Case) {
	const network = {
		interfaces: hostWith(interfaces).interfaces,
		ipv6Flags: () => new Map(Object.entries(flags)),
		sourceOf: (destination: string) => routes[destination],
	};
	return rankAddresses(network, {rules, towards});
}

const chooses = test.macro({
	exec: (t, given: Case, expected: string[]) => {
		t.deepEqual([...selectAddresses(rank(given), given.explicit)], expected);
	},
	title: name => `addresses › ${name}`,
});

test('IPv4 comes before IPv6', chooses, {interfaces: {eth0: ['2001:db8::1', '192.0.2.1']}}, [
	'192.0.2.1',
	'2001:db8::1',
]);
test(
	'without a route, the order does not depend on which interface came up first',
	chooses,
	{interfaces: {eth10: ['192.0.2.3'], eth2: ['192.0.2.9', '192.0.2.10']}},
	['192.0.2.9', '192.0.2.10', '192.0.2.3'],
);
test(
	'bridges and container links are left out',
	chooses,
	{
		interfaces: {
			docker0: ['172.17.0.1'],
			'br-1': ['172.18.0.1'],
			virbr0: ['192.168.122.1'],
			cni0: ['10.1.0.1'],
			veth1: ['10.9.0.1'],
			zz0: ['2001:db8::1'],
		},
	},
	['2001:db8::1'],
);
test('a bridge that carries the machine is none of those', chooses, {interfaces: {br0: ['192.0.2.1']}}, ['192.0.2.1']);
test('when there is nothing else, the best of them is taken', chooses, {interfaces: {docker0: ['172.17.0.1']}}, [
	'172.17.0.1',
]);
test(
	'the one that was given comes first, once',
	chooses,
	{interfaces: {eth0: ['192.0.2.1', '192.0.2.2']}, explicit: '192.0.2.2'},
	['192.0.2.2', '192.0.2.1'],
);
test(
	'loopback and link-local addresses are left out',
	chooses,
	{interfaces: {lo: ['127.0.0.1', '::1'], eth0: ['169.254.1.1', 'fe80::1']}},
	['127.0.0.1'],
);
test(
	'the source of the route to the control plane comes first',
	chooses,
	{
		interfaces: {eth0: ['192.0.2.1'], eth1: ['198.51.100.1'], wg0: ['10.8.0.2']},
		towards: ['10.8.0.1'],
		routes: {'10.8.0.1': '10.8.0.2'},
	},
	['10.8.0.2', '192.0.2.1', '198.51.100.1'],
);
test(
	'where the control plane is not known by address, that of the default route',
	chooses,
	{interfaces: {eth0: ['192.0.2.1'], eth1: ['198.51.100.1']}, routes: {'192.0.2.1': '198.51.100.1'}},
	['198.51.100.1', '192.0.2.1'],
);
test(
	'a control plane on this machine says nothing',
	chooses,
	{
		interfaces: {eth0: ['192.0.2.1'], eth1: ['198.51.100.1']},
		towards: ['127.0.0.1'],
		routes: {'127.0.0.1': '127.0.0.1'},
	},
	['192.0.2.1', '198.51.100.1'],
);
test(
	'temporary and deprecated addresses are left out, and a lasting one beside the source of the route is taken',
	chooses,
	{
		interfaces: {eth0: ['2001:db8::7', '2001:db8::8', '2001:db8::9'], eth1: ['2001:db8:1::1']},
		flags: {'2001:db8::7': 0x01, '2001:db8::8': 0x20},
		towards: ['2001:db8:f::1'],
		routes: {'2001:db8:f::1': '2001:db8::7'},
	},
	['2001:db8::9', '2001:db8:1::1'],
);
test(
	'an address that another machine turned out to have is left out',
	chooses,
	{interfaces: {eth0: ['2001:db8::7', '2001:db8::8']}, flags: {'2001:db8::7': 0x08 | 0x40}},
	['2001:db8::8'],
);
test(
	'rules are tried in order',
	chooses,
	{
		interfaces: {eth0: ['192.0.2.1'], ens5: ['198.51.100.1'], eth2: ['10.1.2.3', '2001:db8::1']},
		rules: [
			{kind: 'interface', name: 'bond*'},
			{kind: 'cidr', cidr: '10.0.0.0/8'},
			{kind: 'interface', name: 'ens*'},
			route,
		],
		routes: {'192.0.2.1': '192.0.2.1'},
	},
	['10.1.2.3', '198.51.100.1', '192.0.2.1', '2001:db8::1'],
);

test('addresses › the ranking says why', t => {
	const ranked = rank({
		interfaces: {eth0: ['192.0.2.1'], docker0: ['172.17.0.1'], eth1: ['198.51.100.1']},
		towards: ['203.0.113.1'],
		routes: {'203.0.113.1': '198.51.100.1'},
	});
	t.deepEqual(
		ranked.map(({address, why}) => `${address}: ${why}`),
		[
			'198.51.100.1: source of the route to the control plane (203.0.113.1)',
			'192.0.2.1: of the machine',
			'172.17.0.1: of a bridge or container link',
		],
	);
});

test('addresses › flags are read as the kernel writes them', t => {
	const text = `fe8000000000000000fc00fffe000001 04 40 20 80     eth0
20010db8000000000000000000000002 04 40 00 01     eth0
nonsense
`;
	t.deepEqual(
		[...parseFlags(text)],
		[
			['fe80::fc:ff:fe00:1', 0x80],
			['2001:db8::2', 0x01],
		],
	);
});

test('addresses › the kernel is asked for a source without a packet, and at once', t => {
	const {sourceOf} = lookAtNetwork();
	t.is(sourceOf!('127.0.0.1'), '127.0.0.1');
	t.is(sourceOf!('127.0.0.9'), '127.0.0.1');
});

test('addresses › rules are written as route, interface:NAME, cidr:NETWORK, metadata', t => {
	t.deepEqual(values.addressRules.parse('interface:ens*, cidr:10.1.2.3/8,route,metadata', '/'), [
		{kind: 'interface', name: 'ens*'},
		{kind: 'cidr', cidr: '10.0.0.0/8'},
		{kind: 'route'},
		{kind: 'metadata'},
	]);
	for (const wrong of ['', 'routes', 'interface', 'interface:', 'cidr:10.0.0.0/33', 'cidr:eth0', 'metadata:x'])
		t.throws(() => values.addressRules.parse(wrong, '/'), {instanceOf: values.ValueError}, wrong);
});
