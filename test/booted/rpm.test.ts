import {join} from 'node:path';
import test from 'ava';
import {until} from '../support/mesh.ts';
import {buildPackages, joinMesh, makeBootedWorld, skippedWithoutMachines, untilActive} from './world.ts';

test.serial('rpm › installed, upgraded and erased, its scripts do what those of the deb do', async t => {
	if (await skippedWithoutMachines(t)) return;
	const [packages, newer] = [
		await buildPackages({format: 'rpm'}),
		await buildPackages({format: 'rpm', names: 'onramp', version: '0.2.0'}),
	];
	const world = await makeBootedWorld(t);
	const a = await world.boot('a');
	const {machine} = a;
	const copy = async (from: typeof packages, name: 'onramp' | 'onramp-envoy'): Promise<string> => {
		const file = from.of(name, 'rpm');
		await machine.copy(join(from.directory, file), `/root/${file}`);
		return `/root/${file}`;
	};
	const files = [await copy(packages, 'onramp-envoy'), await copy(packages, 'onramp')];
	// The machine is a Debian, whose packages rpm knows nothing of.
	t.regex(await machine.must(`rpm -i --nodeps ${files.join(' ')}`), /^onramp is installed and does nothing yet/m);
	t.is((await machine.must('systemctl --failed --plain --no-legend')).trim(), '');
	await joinMesh(a);
	await untilActive(a, 'onramp-ready.target');

	const pids = async () => [
		await machine.show('onramp-envoy@a.service', 'MainPID'),
		await machine.must('nft -s list ruleset'),
	];
	const before = await pids();
	const agent = await machine.show('onramp-agent.service', 'MainPID');
	await machine.must("echo '# edited' >> /etc/onramp/onramp.yaml");
	await machine.must(`rpm -U --nodeps ${await copy(newer, 'onramp')}`);
	await until(
		'another agent',
		async () => !['0', agent].includes(await machine.show('onramp-agent.service', 'MainPID')),
	);
	await machine.must('onramp status --wait 60s');
	t.deepEqual(await pids(), before);
	t.regex(await machine.must('cat /etc/onramp/onramp.yaml'), /# edited/);

	await machine.must('rpm -e onramp');
	t.is((await machine.must('nft list ruleset')).trim(), '');
	t.is((await machine.must('systemctl list-units --all --plain --no-legend "onramp*"')).trim(), '');
	t.is((await machine.must('ps -eo args | grep "[o]nramp" || true')).trim(), '');
	await machine.must('test -e /etc/onramp/bundle/cluster.env -a ! -e /usr/lib/onramp/node');
});
