import test from 'ava';
import {idOf} from '../support/control-plane.ts';
import {
	buildPackages,
	install,
	joinMesh,
	makeBootedWorld,
	skippedWithoutMachines,
	untilActive,
	untilAnswered,
} from './world.ts';

test.serial('package › installed and joined, a machine is called and calls over mutual TLS', async t => {
	if (await skippedWithoutMachines(t)) return;
	const packages = await buildPackages(t);
	const world = await makeBootedWorld(t);
	const [a, b] = await Promise.all([world.boot('a'), world.boot('b')]);
	for (const vm of [a, b]) {
		t.regex(await install(vm, packages), /onramp is installed and does nothing yet: onramp join BUNDLE/);
		t.is(await vm.machine.show('onramp.service', 'ActiveState'), 'inactive', 'quiet until it is joined');
		t.is((await vm.machine.must('systemctl --failed --plain --no-legend')).trim(), '');
		t.log(await joinMesh(vm));
		await untilActive(vm, 'onramp-ready.target');
	}
	t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
	t.like(await untilAnswered(b, 'a'), {app: 'a', caller: idOf('b')});
});
