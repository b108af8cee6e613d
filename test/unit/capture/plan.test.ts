import test from 'ava';
import {planCapture} from '../../../src/capture/plan.ts';
import {renderNft} from '../../../src/capture/render-nft.ts';
import type {Rule} from '../../../src/capture/rules.ts';
import {host, settings} from './settings.ts';

const idsOf = (rules: readonly Rule[], family: string, chain: string) =>
	rules.filter(rule => rule.family === family && rule.chain === chain).map(({id}) => id);

test('plan › a missing user is an error and never a default number', t => {
	t.throws(() => planCapture(settings({users: ['nobody-here']}), host), {
		code: 'capture.user_missing',
		message: /no user "nobody-here"/,
	});
});

test('plan › the user and its own group are exempt, each by its own number', t => {
	const {rules} = planCapture(settings(), host);
	const own = rules.filter(({id, family}) => id === 'outbound.own' && family === 'ip').map(({match}) => match);
	t.deepEqual(own.slice(0, 2), [{uid: {is: [990]}}, {gid: {is: [991]}}]);
});

test('plan › the same settings on the same host are the same plan', t => {
	t.is(planCapture(settings(), host).digest, planCapture(settings(), host).digest);
	t.not(planCapture(settings(), host).digest, planCapture(settings({inboundExcludePorts: [9]}), host).digest);
});

test('plan › outbound rules stand in the order of Istio’s', t => {
	const config = settings({
		dns: 'servers',
		outboundExcludePorts: [25],
		outboundExcludeCidrs: ['10.1.0.0/16'],
		outboundPorts: [5432],
		excludeInterfaces: ['tun0'],
		outboundExcludeGroups: ['workers'],
	});
	t.deepEqual(idsOf(planCapture(config, host).rules, 'ip', 'nat_output'), [
		'outbound.interface',
		'outbound.excluded-port',
		'outbound.excluded-port',
		'outbound.pass-through',
		'outbound.own-call',
		'outbound.own-call',
		'outbound.own',
		'outbound.own',
		'outbound.local',
		'outbound.excluded-owner',
		'outbound.dns',
		'outbound.dns',
		'outbound.loopback',
		'outbound.excluded-cidr',
		'outbound.excluded-cidr',
		'outbound.port',
		'outbound.capture',
	]);
});

test('plan › SSH and the agent’s own ports are not captured, whether all ports are or a list', t => {
	for (const inboundPorts of ['*', [22, 8080]] as const) {
		const {rules, notes} = planCapture(settings({inboundPorts}), host);
		const chain = rules.filter(({family, chain}) => family === 'ip' && chain === 'nat_prerouting');
		const capture = chain.findIndex(({id}) => id === 'inbound.capture');
		const never = chain.filter(({id}) => id === 'inbound.never');
		t.deepEqual(
			never.map(({match}) => match.destinationPort),
			[22, 15_020, 15_021, 15_090].map(port => ({is: [port]})),
		);
		t.true(never.every(rule => chain.indexOf(rule) < capture));
		t.is(
			notes.some(note => note.includes('port 22 is listed')),
			inboundPorts !== '*',
		);
	}
});

test('plan › a port that is listed and left out is told; what istioctl leaves out beside a list is not', t => {
	const notesOf = (inboundExcludePorts: number[]) =>
		planCapture(settings({inboundPorts: [8080], inboundExcludePorts}), host).notes.filter(note =>
			/left out/.test(note),
		);
	t.deepEqual(notesOf([15_020, 15_021, 15_090]), []);
	t.regex(notesOf([8080, 15_021]).join(), /^port 8080 is listed and left out/);
});

test('plan › Istio’s variables say the same as the settings', t => {
	const config = settings(
		{},
		{
			ISTIO_SERVICE_CIDR: '10.0.0.0/8,fd00::/8',
			ISTIO_INBOUND_PORTS: '8080,9090',
			ISTIO_LOCAL_EXCLUDE_PORTS: '22,15090',
			ISTIO_OUTBOUND_PORTS: '3306',
			ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE: '25',
			ISTIO_EXCLUDE_INTERFACES: 'tun0',
			KUBE_VIRT_INTERFACES: 'tap0',
			ISTIO_SERVICE_EXCLUDE_CIDR: '10.9.0.0/16',
			ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE: 'workers',
			ISTIO_INBOUND_INTERCEPTION_MODE: 'TPROXY',
			ISTIO_CUSTOM_IP_TABLES: 'true',
		},
	);
	t.like(config, {
		outboundCidrs: ['10.0.0.0/8', 'fd00::/8'],
		inboundPorts: [8080, 9090],
		inboundExcludePorts: [22, 15_090],
		outboundPorts: [3306],
		outboundExcludePorts: [25],
		excludeInterfaces: ['tun0'],
		outboundInterfaces: ['tap0'],
		outboundExcludeCidrs: ['10.9.0.0/16'],
		outboundExcludeGroups: ['workers'],
		interception: 'tproxy',
		isEnabled: false,
	});
	t.deepEqual(settings({}, {ISTIO_INBOUND_PORTS: ''}).inboundPorts, []);
});

test('plan › each family has its own networks, name servers and loopback', t => {
	const {rules} = planCapture(settings({dns: 'servers', outboundCidrs: ['10.0.0.0/8', 'fd00::/8']}), host);
	const destinations = (family: string, id: string) => [
		...new Set(rules.filter(rule => rule.family === family && rule.id === id).map(({match}) => match.destination)),
	];
	t.deepEqual(destinations('ip', 'outbound.capture')[0], {is: '10.0.0.0/8'});
	t.deepEqual(destinations('ip6', 'outbound.capture')[0], {is: 'fd00::/8'});
	t.deepEqual(destinations('ip6', 'outbound.dns')[0], {is: 'fd00::2/128'});
	t.deepEqual(destinations('ip6', 'outbound.loopback')[0], {is: '::1/128'});
	t.false(rules.some(({family, match}) => family === 'ip6' && JSON.stringify(match).includes('127.0.0.')));
});

test('plan › a bridge that is this machine’s own way out is not taken for one of guests', t => {
	const interfaces = [{name: 'br-lan', isBridge: true, hasDefaultRoute: true}];
	const {rules} = planCapture(settings(), {...host, interfaces});
	t.false(rules.some(({match}) => match.inInterface?.startsWith('br-')));
	t.true(planCapture(settings(), host).rules.some(({match}) => match.inInterface === 'br-*'));
});

test('plan › without IPv6 there is no rule for it', t => {
	const {rules, host: state} = planCapture(settings(), {...host, ipv6: 'off'});
	t.false(rules.some(({family}) => family === 'ip6'));
	t.false(state.hasPassThroughAddress);
});

test('nft › replaces everything of ours in one transaction, and every rule says what it is for', t => {
	const plan = planCapture(settings({dns: 'servers'}), host);
	const text = renderNft(plan);
	for (const family of ['ip', 'ip6']) {
		const [added, deleted, made] = [
			`add table ${family} onramp\n`,
			`delete table ${family} onramp\n`,
			`\ntable ${family} onramp {`,
		];
		t.true(text.indexOf(added) < text.indexOf(deleted) && text.indexOf(deleted) < text.indexOf(made));
	}
	const lines = text.split('\n').filter(line => line.startsWith('\t\t') && !line.includes('policy accept'));
	t.is(lines.length, plan.rules.length);
	t.regex(
		text,
		/\}\nadd rule ip onramp about counter comment "onramp 1 capture plan=\w+"\n/,
		'last of all in its table',
	);
	t.true(lines.every(line => /counter .*comment "[ -~]{5,120}"$/.test(line)));
});

test('plan › connections from before the rules are ended only if the settings say so, and those of SSH never', t => {
	const guard = (existingConnections: 'leave' | 'end') =>
		idsOf(planCapture(settings({existingConnections}), host).rules, 'ip', 'filter_output');
	t.false(guard('leave').some(id => id.endsWith('-older') || id === 'guard.answer'));
	const ids = guard('end');
	t.true(ids.includes('outbound.capture-older'));
	t.true(ids.indexOf('guard.answer') < ids.indexOf('outbound.capture-older'));
	t.true(ids.lastIndexOf('outbound.own') < ids.indexOf('outbound.capture-older'), "Envoy's own go on");
});

test('plan › what comes in without having been redirected is refused behind every redirect, but for what is never captured', t => {
	for (const interception of ['redirect', 'tproxy'] as const) {
		const ids = idsOf(planCapture(settings({interception}), host).rules, 'ip6', 'filter_input');
		t.true(ids.indexOf('guard.redirected') < ids.indexOf('guard.inbound'));
		t.true(ids.lastIndexOf('inbound.never') < ids.indexOf('guard.inbound'), 'SSH');
	}
	const {rules} = planCapture(settings({interception: 'tproxy'}), host);
	const chain = idsOf(rules, 'ip', 'mangle_prerouting');
	t.true(
		chain.indexOf('inbound.capture') < chain.indexOf('inbound.established'),
		'no first packet is taken for an old one',
	);
});
