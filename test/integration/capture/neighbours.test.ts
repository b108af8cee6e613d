import test from 'ava';
import {address, backends, makeWorld, skippedWithout, toolsOf} from '../../support/netns.ts';

/** As dockerd makes them for a container with a published port; the container is a namespace's own address here. */
const dockerRules = `*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8443 -j DNAT --to-destination 172.17.0.1:80
COMMIT
*filter
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
COMMIT
`;

/** As firewalld makes them with its nftables way. */
const firewalldRules = `table inet firewalld {
	chain filter_INPUT { type filter hook input priority 10; policy accept; ct state established,related accept; }
	chain nat_PREROUTING { type nat hook prerouting priority -90; policy accept; jump nat_PREROUTING_ZONES; }
	chain nat_PREROUTING_ZONES { return; }
}
`;

for (const backend of backends)
	test.serial(
		`neighbours › rules of docker and firewalld stay as they are, and a published port leads to its container: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
			const {vm, far} = world;
			const tool = backend === 'iptables-legacy' ? 'iptables-legacy' : 'iptables-nft';
			await vm.must('ip', ['link', 'add', 'docker0', 'type', 'bridge']);
			await vm.must('ip', ['addr', 'add', '172.17.0.1/16', 'dev', 'docker0']);
			await vm.must('ip', ['link', 'set', 'docker0', 'addrgenmode', 'none', 'up']);
			await vm.must(`${tool}-restore`, ['--noflush'], dockerRules);
			await vm.must('nft', ['-f', '-'], firewalldRules);
			if (backend === 'iptables-legacy')
				for (const program of ['iptables-legacy', 'ip6tables-legacy'])
					for (const table of ['raw', 'mangle', 'nat', 'filter']) await vm.must(program, ['-t', table, '-S']);
			const before = await world.dump();
			await world.startEnvoy();
			const [app, container, outside] = [await vm.peer(), await vm.peer(0), await far.peer(0)];
			await outside.listen('0.0.0.0', 80);
			await app.listen('0.0.0.0', 8080);
			await container.listen('172.17.0.1', 80);
			const {code, stderr} = await world.capture(['apply']);
			t.is(code, 0, stderr);
			t.like(await outside.ask(address.vm.ip, 8443), {via: 'direct', port: 80}, 'the published port');
			t.like(await outside.ask(address.vm.ip, 8080), {via: 'envoy'});
			t.like(await app.ask(address.far.ip, 80), {via: 'envoy'});
			t.is((await world.capture(['verify'])).code, 0);

			// A restart of dockerd takes its rules away and appends them again, behind ours.
			await vm.must(tool, ['-t', 'nat', '-D', 'PREROUTING', '-m', 'addrtype', '--dst-type', 'LOCAL', '-j', 'DOCKER']);
			await vm.must(tool, ['-t', 'nat', '-A', 'PREROUTING', '-m', 'addrtype', '--dst-type', 'LOCAL', '-j', 'DOCKER']);
			t.is((await world.capture(['apply'])).code, 0);
			t.like(
				await outside.ask(address.vm.ip, 8443),
				{via: 'direct', port: 80},
				'the published port after a restart of dockerd',
			);

			t.is((await world.capture(['remove'])).code, 0);
			t.is(await world.dump(), before);
		},
	);

/** As Istio's tool makes them with TPROXY and DNS. */
const istio = (own: string) => `*mangle
:ISTIO_DIVERT - [0:0]
:ISTIO_INBOUND - [0:0]
:ISTIO_TPROXY - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark
-A OUTPUT -o lo -p tcp -m mark --mark 0x539 -j RETURN
-A OUTPUT ! -d ${own} -o lo -p tcp -m owner --uid-owner 1337 -j MARK --set-xmark 0x53a/0xffffffff
-A OUTPUT -p tcp -m connmark --mark 0x539 -j CONNMARK --restore-mark
-A ISTIO_DIVERT -j MARK --set-xmark 0x539/0xffffffff
-A ISTIO_DIVERT -j ACCEPT
-A ISTIO_INBOUND -p tcp -m tcp --dport 22 -j RETURN
-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT
-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY
-A ISTIO_TPROXY ! -d ${own} -p tcp -j TPROXY --on-port 15006 --tproxy-mark 0x539/0xffffffff
COMMIT
*raw
:ISTIO_OUTPUT_DNS - [0:0]
-A OUTPUT -j ISTIO_OUTPUT_DNS
-A ISTIO_OUTPUT_DNS -p udp -m udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1
COMMIT
*nat
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -p tcp -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
`;

/** And with its way of nftables, shortened. */
const istioNative = `table inet istio-proxy-nat {
	chain istio-redirect { meta l4proto tcp counter redirect to :15001; }
	chain output { type nat hook output priority -100; tcp dport 0-65535 jump istio-redirect; }
}
table inet istio-proxy-raw {
	chain output { type filter hook output priority raw; udp dport 53 meta skuid 1337 ct zone set 1; }
}
`;

/** Of the administrator, some of them in the same chains; also what makes the tables that iptables-nft keeps. */
const others = ['raw', 'mangle', 'nat', 'filter']
	.map(
		table =>
			`*${table}\n${['PREROUTING', 'OUTPUT']
				.filter(chain => table !== 'filter' || chain === 'OUTPUT')
				.map(chain => `-A ${chain} -p tcp -m mark --mark 0x7 -j RETURN\n`)
				.join('')}COMMIT\n`,
	)
	.join('');

for (const way of ['iptables-nft', 'iptables-legacy', 'nft'] as const)
	test.serial(
		`neighbours › rules of Istio’s own tool are refused by name, or taken over when asked, and none of them is left: ${way}`,
		async t => {
			if (skippedWithout(t, toolsOf(way))) return;
			const world = await makeWorld(t);
			const {vm, far} = world;
			const tool = way === 'nft' ? 'iptables-nft' : way;
			const restore = async (text: (own: string) => string) => {
				await vm.must(`${tool}-restore`, ['--noflush'], text('127.0.0.1/32'));
				await vm.must(`${tool.replace('ip', 'ip6')}-restore`, ['--noflush'], text('::1/128'));
			};
			await restore(() => others);
			// These Istio's own tool never takes away; ours go in beside them.
			for (const [family, any] of [
				['-4', '0.0.0.0/0'],
				['-6', '::/0'],
			] as const) {
				await vm.must('ip', [family, 'rule', 'add', 'fwmark', '1337', 'lookup', '133']);
				await vm.must('ip', [family, 'route', 'add', 'local', any, 'dev', 'lo', 'table', '133']);
			}
			const before = await world.dump();
			if (way === 'nft') await vm.must('nft', ['-f', '-'], istioNative);
			else await restore(istio);
			const theirs = await world.dump();
			t.not(theirs, before);
			await world.startEnvoy();
			const [app, outside] = [await vm.peer(), await far.peer(0)];
			await outside.listen('0.0.0.0', 80);
			const refused = await world.capture(['apply']);
			t.is(refused.code, 1);
			const place = way === 'nft' ? 'nft, table inet istio-proxy-nat' : `${way}, table nat`;
			t.regex(refused.stderr, new RegExp(`rules of Istio's own tool are there \\(.*${place}[\\s\\S]*--take-over`));
			t.is(await world.dump(), theirs);
			t.is((await world.capture(['apply', '--take-over'])).code, 0);
			t.like(await app.ask(address.far.ip, 80), {via: 'envoy'});
			t.is((await world.capture(['verify'])).code, 0);
			const tproxy = await world.capture(['apply', '--capture-interception', 'tproxy']);
			t.is(tproxy.code, 0, tproxy.stderr);
			t.is((await world.capture(['remove'])).code, 0);
			t.is(await world.dump(), before, 'as it was before Istio');
		},
	);
