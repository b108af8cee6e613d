import test from 'ava';
import {hostOf, idOf} from '../support/captured-mesh.ts';
import {until} from '../support/mesh.ts';
import {address} from '../support/netns.ts';
import {
	buildPackages,
	install,
	joinMesh,
	makeBootedWorld,
	skippedWithoutMachines,
	untilActive,
	untilAnswered,
	vips,
} from './world.ts';

test.serial(
	'package › systemd-resolved asks the agent for names of the mesh and others for the rest, by a link and a rule that an admin switches on',
	async t => {
		if (await skippedWithoutMachines(t)) return;
		const packages = await buildPackages();
		const world = await makeBootedWorld(t);
		const [a, b] = await Promise.all([world.boot('a', {resolvConf: 'nameserver 127.0.0.53\n'}), world.boot('b')]);
		const {machine} = a;
		await Promise.all([install(a, packages), install(b, packages)]);
		const outside = await world.far.peer(0);
		await outside.serveNames(address.far.ip, 53, 'far');
		await machine.must(
			`mkdir -p /etc/systemd/resolved.conf.d && printf '[Resolve]\\nDNS=${address.far.ip}\\nDNSSEC=no\\n' >/etc/systemd/resolved.conf.d/far.conf && systemctl enable --now systemd-resolved`,
		);
		const readiness = async () => machine.must("curl -s -m 5 -w ' %{http_code}' http://127.0.0.1:15020/readyz/dns");
		const untilSaid = (what: RegExp) => until(`${what}`, async () => what.test(await readiness()), 60_000);

		await machine.must("echo 'dns: {mode: resolved}' >>/etc/onramp/onramp.yaml");
		await machine.copy(a.bundle, '/root/bundle');
		await joinMesh(b);
		const {code, stdout} = await machine.sh('onramp join /root/bundle --wait 5s --proxy-termination-drain 2s');
		t.not(code, 0);
		t.regex(stdout, /there is no link onramp-dns/);
		t.regex(stdout, /systemctl enable --now onramp-dns-link/);
		await machine.must('systemctl enable --now onramp-dns-link');
		await untilSaid(/not permitted[\s\S]*50-onramp-dns\.rules/);
		await machine.must(
			'cd /etc/polkit-1; if [ -d rules.d ]; then cp /usr/share/onramp/50-onramp-dns.rules rules.d; else mkdir -p localauthority/50-local.d; cp /usr/share/onramp/50-onramp-dns.pkla localauthority/50-local.d; fi',
		);
		await untilSaid(/ 200$/);
		await untilActive(a, 'onramp-ready.target');

		const addressOf = async (name: string) =>
			(await machine.sh(`getent ahostsv4 ${name} | cut -d' ' -f1 | sort -u`)).stdout.trim();
		t.is(await addressOf(hostOf('b')), vips.b);
		t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
		t.regex(
			await machine.must(`curl -s -m 10 http://${hostOf('b')}/`),
			new RegExp(`"app":"b","caller":"${idOf('a')}"`),
			'by name, as any program asks for it',
		);
		await machine.sh('resolvectl query --cache=no names.of.others');
		const asked = await outside.send<string[]>('asked');
		t.true(asked.includes('names.of.others'), 'other names are for others');
		t.deepEqual(
			asked.filter(name => name.endsWith('svc.cluster.local')),
			[],
			'and these are not',
		);
		const resolvConf = await machine.must('cat /etc/resolv.conf');
		t.is(resolvConf, 'nameserver 127.0.0.53\n', 'nobody has touched it');

		// Somebody takes the domains away.
		await machine.must('resolvectl revert onramp-dns');
		await until('the domains', async () => (await machine.must('resolvectl domain onramp-dns')).includes('~'), 60_000);

		// All of it comes back with a boot, and without the agent others are asked for everything.
		await machine.reboot();
		await untilActive(a, 'onramp-ready.target');
		t.is(await addressOf(hostOf('b')), vips.b);
		await machine.must('systemctl stop onramp');
		t.notRegex(await machine.must('resolvectl domain onramp-dns'), /~/);
		t.is(await addressOf(hostOf('b')), '');
		await machine.must('dpkg --purge onramp onramp-envoy');
		t.false((await machine.must('ls /sys/class/net')).includes('onramp'));
		t.notRegex((await machine.sh('systemctl list-unit-files --no-legend "onramp*"')).stdout, /enabled/);
	},
);
