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

test.serial('neighbours › rules of Istio’s own tool are refused by name, or taken over when asked', async t => {
	if (skippedWithout(t, toolsOf('iptables-nft'))) return;
	const world = await makeWorld(t);
	const {vm, far} = world;
	const before = await world.dump();
	await vm.must(
		'iptables-nft-restore',
		['--noflush'],
		'*nat\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_REDIRECT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\n-A ISTIO_OUTPUT -p tcp -j ISTIO_REDIRECT\n-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n',
	);
	const theirs = await world.dump();
	await world.startEnvoy();
	const [app, outside] = [await vm.peer(), await far.peer(0)];
	await outside.listen('0.0.0.0', 80);
	const refused = await world.capture(['apply']);
	t.is(refused.code, 1);
	t.regex(refused.stderr, /rules of Istio's own tool are there \(iptables-nft, table nat\)[\s\S]*--take-over/);
	t.is(await world.dump(), theirs);
	t.is((await world.capture(['apply', '--take-over'])).code, 0);
	t.like(await app.ask(address.far.ip, 80), {via: 'envoy'});
	t.false((await world.dump()).includes('ISTIO_'));
	await world.capture(['remove']);
	t.not(before, theirs);
});
