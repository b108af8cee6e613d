import {writeFile} from 'node:fs/promises';
import test from 'ava';
import {idOf} from '../support/captured-mesh.ts';
import {
	buildPackages,
	install,
	joinMesh,
	makeBootedWorld,
	seedFor,
	skippedWithoutMachines,
	untilActive,
	untilAnswered,
} from './world.ts';

test.serial(
	'cloud-init › a machine that was never logged in to joins by its user-data, and no copy of the token stays',
	async t => {
		if (await skippedWithoutMachines(t)) return;
		const packages = await buildPackages();
		const world = await makeBootedWorld(t);
		const seed = await seedFor(await world.bundle('a'), packages);
		const b = await world.boot('b');
		await install(b, packages);
		await joinMesh(b);
		const a = await world.boot('a', seed);
		await writeFile(a.machine.path('/root/user-data'), seed.seed['user-data']!);
		t.regex(await a.machine.must('cloud-init schema --config-file /root/user-data'), /Valid/);
		await a.machine.must('rm /root/user-data');
		t.regex(await a.machine.must('cloud-init status --wait'), /status: done/);
		await untilActive(a, 'onramp-ready.target');
		t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
		t.like(await untilAnswered(b, 'a'), {app: 'a', caller: idOf('b')});
		t.regex(await a.machine.must('cat /etc/onramp/join.yaml'), /concurrency: "?1/);
		const at = async (unit: string) => Number(await a.machine.show(unit, 'ActiveEnterTimestampMonotonic')) / 1000;
		const tookMs = Math.round((await at('onramp-ready.target')) - (await at('onramp.service')));
		t.log(`in the mesh ${tookMs} ms after the start of the service`);

		const holders = () =>
			a.machine.must('grep -rlF -f /etc/onramp/bundle/istio-token /etc /var /run /root /home /tmp 2>/dev/null || true');
		t.is(await holders(), '/etc/onramp/bundle/istio-token\n');
		const before = await a.machine.must(
			'cat /etc/machine-id; ls /var/lib/cloud/instances; stat -c %Y /etc/onramp/bundle/*',
		);
		await a.machine.reboot();
		t.regex(await a.machine.must('cloud-init status --wait'), /status: done/);
		await untilActive(a, 'onramp-ready.target');
		t.is(
			await a.machine.must('cat /etc/machine-id; ls /var/lib/cloud/instances; stat -c %Y /etc/onramp/bundle/*'),
			before,
			'it knows itself again, and does nothing twice',
		);
		t.is(await holders(), '/etc/onramp/bundle/istio-token\n');
		t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
	},
);
