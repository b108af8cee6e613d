import {join} from 'node:path';
import test from 'ava';
import {until} from '../support/mesh.ts';
import {
	buildPackages,
	differenceOf,
	joinMesh,
	lookAround,
	makeBootedWorld,
	type Packages,
	skippedWithoutMachines,
	underLoad,
	untilActive,
	untilAnswered,
	type Vm,
} from './world.ts';

test.serial('rpm › installed, upgraded, taken back and erased, its scripts do what those of the deb do', async t => {
	if (await skippedWithoutMachines(t)) return;
	const setting = 'log: {level: debug}';
	const [packages, newer] = [
		await buildPackages({format: 'rpm'}),
		await buildPackages({format: 'rpm', names: 'onramp', version: '0.2.0', setting}),
	];
	const world = await makeBootedWorld(t);
	const [a, b] = await Promise.all([world.boot('a'), world.boot('b')]);
	const {machine} = a;
	// Every system of rpm's own kind has it.
	await machine.must('mkdir -p /usr/share/man/man1');
	const bare = await lookAround(a);
	const bring = async ({machine}: Vm, from: Packages, name: 'onramp' | 'onramp-envoy'): Promise<string> => {
		const file = from.of(name, 'rpm');
		await machine.copy(join(from.directory, file), `/root/${file}`);
		return `/root/${file}`;
	};
	const installOn = async (vm: Vm): Promise<void> => {
		const files = [await bring(vm, packages, 'onramp-envoy'), await bring(vm, packages, 'onramp')];
		// The machine is a Debian, whose packages rpm knows nothing of.
		const said = await vm.machine.must(`rpm -i --nodeps ${files.join(' ')}`);
		t.regex(said, /^onramp is installed and does nothing yet/m);
		t.is((await vm.machine.must('systemctl --failed --plain --no-legend')).trim(), '');
	};
	await installOn(a);
	const [old, next] = [await bring(a, packages, 'onramp'), await bring(a, newer, 'onramp')];
	const config = () => machine.must('cd /etc/onramp; tail -n1 onramp.yaml*');
	await machine.must(`rpm -U --nodeps ${next}`);
	t.is(await config(), `${setting}\n`, 'settings that nobody has edited are the new ones');
	await machine.must('rpm -e onramp onramp-envoy');
	const unused = {more: ['onramp', 'onramp'], less: []};
	t.deepEqual(differenceOf(bare, await lookAround(a)), unused, 'erased unused, only user and group stay');

	for (const vm of [a, b]) await installOn(vm);
	await Promise.all([a, b].map(joinMesh));
	for (const vm of [a, b]) await untilActive(vm, 'onramp-ready.target');
	await untilAnswered(a, 'b');
	await untilAnswered(b, 'a');
	const untouched = async () => [
		await machine.show('onramp-envoy@a.service', 'MainPID'),
		await machine.must('nft -s list ruleset'),
	];
	const before = await untouched();
	await machine.must("echo '# edited' >> /etc/onramp/onramp.yaml");
	for (const [version, command] of [
		['0.2.0', `rpm -U --nodeps ${next}`],
		['0.1.0', `rpm -U --oldpackage --nodeps ${old}`],
	] as const) {
		const agent = await machine.show('onramp-agent.service', 'MainPID');
		await underLoad(t, {a, b}, async () => {
			await machine.must(command);
			await until(
				'another agent',
				async () => !['0', agent].includes(await machine.show('onramp-agent.service', 'MainPID')),
			);
			await machine.must('onramp status --wait 60s');
		});
		t.is(await machine.must("rpm -q --qf '%{VERSION}' onramp"), version);
		t.deepEqual(await untouched(), before, version);
		if (version === '0.2.0')
			t.is(
				await config(),
				`==> onramp.yaml <==\n# edited\n\n==> onramp.yaml.rpmnew <==\n${setting}\n`,
				'what was edited stays, and the new settings lie beside it',
			);
		else t.regex(await config(), /^==> onramp.yaml <==\n# edited\n/);
	}

	await machine.must('echo mine > /etc/onramp/mine.yaml; rpm -e onramp onramp-envoy; rm -r /root/*.rpm /root/bundle');
	const {more, less} = differenceOf(bare, await lookAround(a));
	t.deepEqual(less, []);
	t.deepEqual(
		more.filter(line => !/^\/(var\/lib|etc)\/onramp(\/|$)/.test(line)),
		['onramp', 'onramp'],
		'of the machine itself only user and group stay',
	);
	t.regex(await machine.must('cat /etc/onramp/onramp.yaml.rpmsave'), /# edited/);
	await machine.must('cat /etc/onramp/mine.yaml /etc/onramp/bundle/cluster.env');
	// As docs/install.md has it for whoever wants nothing to be left.
	await machine.must('rm -r /var/lib/onramp /etc/onramp; userdel onramp');
	t.deepEqual(differenceOf(bare, await lookAround(a)), {more: [], less: []});
});
