import test from 'ava';
import {loadConfig} from '../../../src/config/index.ts';
import {bundleFiles, host, memoryReader, problemsOf} from './sources.ts';

const load = (argv: Record<string, string>, bundle: 'autoregister' | 'none' = 'autoregister') =>
	loadConfig({
		argv: bundle === 'none' ? {namespace: 'shop', ...argv} : argv,
		env: {},
		host,
		files: memoryReader(bundle === 'none' ? {} : bundleFiles(bundle)),
	}).config;

test('config › the bundle decides whether names are answered here, unless dns.mode says so', t => {
	const asked = load({});
	t.deepEqual([asked.dns.mode, asked.workload.isDnsCaptured, asked.capture.dns], ['capture', true, 'servers']);
	const off = load({'dns-mode': 'off'});
	t.deepEqual([off.dns.mode, off.workload.isDnsCaptured, off.capture.dns], ['off', false, 'off']);
	t.false(off.relay.isNameTableWanted);
	const resolved = load({'dns-mode': 'resolved'});
	t.deepEqual([resolved.workload.isDnsCaptured, resolved.capture.dns], [true, 'off'], 'one way is enough');
	const unasked = load({}, 'none');
	t.deepEqual([unasked.dns.mode, unasked.workload.isDnsCaptured], ['off', false]);
	t.is(load({'dns-mode': 'capture'}, 'none').dns.mode, 'capture');
});

test('config › rules lead questions to where the server is', t => {
	t.is(load({'dns-port': '5353'}).capture.dnsPort, 5353);
	t.is(load({'dns-port': '5353', 'capture-dns-port': '5354'}).capture.dnsPort, 5354);
});

test('config › servers are addresses, with ports where they want', t => {
	t.deepEqual(
		load({'dns-upstreams': '192.0.2.1, 192.0.2.1:5353,[2001:db8::1]:53,2001:db8::2, fe80::1%eth0'}).dns.upstreams,
		[
			{address: '192.0.2.1', port: 53},
			{address: '192.0.2.1', port: 5353},
			{address: '2001:db8::1', port: 53},
			{address: '2001:db8::2', port: 53},
			{address: 'fe80::1%eth0', port: 53},
		],
	);
	t.deepEqual(load({'dns-mesh-domains': 'none'}).dns.meshDomains, []);
	t.deepEqual(load({'dns-mesh-domains': 'a.example,b.example'}).dns.meshDomains, ['a.example', 'b.example']);
	t.is(load({}).dns.meshDomains, undefined);
});

test('config › a server for the whole network, or without an address, is refused', t => {
	for (const [flag, value, message] of [
		['dns-addresses', '0.0.0.0', /not a loopback address/],
		['dns-addresses', '', /empty/],
		['dns-upstreams', 'dns.example', /not an IP address/],
		['dns-upstreams', '192.0.2.1:99999', /between 1 and 65535/],
		['dns-timeout', '1ms', /shorter/],
		['dns-port', '15020', /also that of/],
	] as const)
		t.regex(problemsOf(() => load({[flag]: value})).join(), message, `${flag} ${value}`);
});
