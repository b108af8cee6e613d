// Machines that nobody logs in to, told in order: a golden image and what becomes of it, and one made by user-data alone.
import {mkdir, readFile, rm, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {type Echo, idOf} from '../support/captured-mesh.ts';
import {until} from '../support/mesh.ts';
import {shareScope} from './scope.ts';
import {
	type BootedWorld,
	buildPackages,
	install,
	makeBootedWorld,
	type Packages,
	seedFor,
	skippedWithoutMachines,
	untilActive,
	untilAnswered,
	userData,
	type Vm,
	vips,
} from './world.ts';

const {scope, step: shared} = shareScope(test);
let [world, a, b, packages] = [undefined, undefined, undefined, undefined] as unknown as [
	BootedWorld,
	Vm,
	Vm,
	Packages,
];
/** What `a` was booted with. */
let given = '';

const step = (title: string, run: (t: ExecutionContext) => Promise<void>): void =>
	shared(`cloud-init › ${title}`, async t => {
		if (!(await skippedWithoutMachines(t))) await run(t);
	});

const seedDirectory = '/var/lib/cloud/seed/nocloud';

async function writeSeed({machine}: Vm, instance: string, text: string): Promise<void> {
	await mkdir(machine.path(seedDirectory), {recursive: true});
	await writeFile(machine.path(`${seedDirectory}/user-data`), text);
	await writeFile(machine.path(`${seedDirectory}/meta-data`), `instance-id: ${instance}\n`);
}

async function untilInTheMesh(t: ExecutionContext, vm: Vm): Promise<void> {
	t.regex(await vm.machine.must('cloud-init status --wait'), /status: done/);
	await untilActive(vm, 'onramp-ready.target');
}

/** Files with the token; one is right. */
const holders = ({machine}: Vm): Promise<string> =>
	machine.must('grep -rlF -f /etc/onramp/bundle/istio-token /etc /var /run /root /home /tmp 2>/dev/null || true');
const onlyHolder = '/etc/onramp/bundle/istio-token\n';

const keyOf = ({machine}: Vm): Promise<string> => machine.must('cat /var/lib/onramp/identity/current/key.pem');

step('a golden image has nothing of an identity, and nothing in it has failed', async t => {
	packages = await buildPackages();
	world = await makeBootedWorld(scope);
	b = await world.boot('b');
	await install(b, packages);
	await b.machine.reboot();
	t.is((await b.machine.must('systemctl --failed --plain --no-legend')).trim(), '');
	t.is(await b.machine.show('onramp.service', 'ActiveState'), 'inactive');
	t.is(await b.machine.must('ls -A /var/lib/onramp /run/onramp'), '/run/onramp:\n\n/var/lib/onramp:\n');
	t.is(await b.machine.must('find /etc/onramp -type f'), '/etc/onramp/onramp.yaml\n');
});

step('all user-data that the documentation speaks of is to the liking of cloud-init', async t => {
	const bundle = await world.bundle('b');
	const page = await readFile(join(import.meta.dirname, '../../docs/install.md'), 'utf8');
	const repositories = [...page.split('\n## cloud-init\n')[1]!.matchAll(/^```yaml\n([\s\S]*?)^```$/gm)];
	t.true(repositories.length >= 2);
	const [plain, fromRepository, ...others] = await Promise.all([
		userData(bundle),
		userData(bundle, '--package', 'onramp'),
		userData(bundle, '--package', 'https://host/onramp.deb,https://host/onramp-envoy.deb?token=1'),
		userData(bundle, '--package', '/root/onramp.deb,/root/onramp-envoy.deb'),
		userData(bundle, '--package', '/root/onramp.rpm,/root/onramp-envoy.rpm'),
		// Of an autoscaling group.
		userData(bundle, '--group', 'b', '--wait', '300s', '--workload-labels', 'version=v2,tier=web'),
	]);
	const good = [plain, fromRepository, ...others, ...repositories.map(([, yaml]) => `${fromRepository}${yaml}`)];
	const directory = '/root/user-data';
	await mkdir(b.machine.path(directory));
	for (const [i, text] of [...good, '#cloud-config\nruncmd: 3\n'].entries())
		await writeFile(b.machine.path(`${directory}/${i}`), text);
	const said = await b.machine.must(
		`cd ${directory}; for i in $(ls | sort -n); do cloud-init schema --config-file $i >said 2>&1; echo "$i $?"; cat said >&2; done`,
	);
	t.is(
		said,
		`${good.map((_, i) => `${i} 0\n`).join('')}${good.length} 1\n`,
		'and the last one, which is wrong, is not',
	);
	await b.machine.must(`rm -r ${directory}`);
});

step('a clone of the golden image joins at its first boot, by what it is given there', async t => {
	const {machine} = b;
	await rm(machine.path('/etc/cloud/cloud-init.disabled'));
	await writeSeed(b, 'i-2', await userData(b.bundle, '--proxy-termination-drain', '2s'));
	await writeFile(machine.path('/etc/machine-id'), '');
	await machine.reboot();
	await untilInTheMesh(t, b);
	t.regex(await keyOf(b), /BEGIN PRIVATE KEY/);
	t.is(await holders(b), onlyHolder);
});

step('a clone of a machine that is in the mesh notices it, and has an identity of its own', async t => {
	const before = await keyOf(b);
	await writeSeed(b, 'i-3', await userData(b.bundle, '--proxy-termination-drain', '2s'));
	await b.machine.reboot();
	await untilInTheMesh(t, b);
	await until('another key', async () => (await keyOf(b)) !== before);
	t.regex(await b.machine.must('journalctl -b -u onramp-agent -o cat'), /written on another machine/);
	t.is(await holders(b), onlyHolder);
});

step('a machine that was never logged in to joins by its user-data, and no copy of the token stays', async t => {
	const seed = await seedFor(await world.bundle('a'), packages);
	given = seed.seed['user-data']!;
	const booting = world.boot('a', seed);
	// While it boots: its first answer is the end of what is measured.
	const echo = await until(
		'the first answer of a',
		async () => {
			const seen = await b.app.send<Echo>('get', {url: `http://${vips.a}/`, withinMs: 500});
			return seen.app ? seen : undefined;
		},
		120_000,
	);
	const answeredMs = Number(process.hrtime.bigint()) / 1e6;
	t.like(echo, {app: 'a', caller: idOf('b')});
	a = await booting;
	// All machines of this kind have the clock of the kernel.
	const at = async (event: string) =>
		Number(await a.machine.show('onramp.service', `${event}TimestampMonotonic`)) / 1000;
	const tookMs = Math.round(answeredMs - (await at('InactiveExit')));
	t.log(`first request over mutual TLS served ${tookMs} ms after cloud-init started the service`);
	t.true(tookMs > 0 && tookMs <= 5000, `${tookMs} ms`);
	await untilInTheMesh(t, a);
	t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
	t.regex(await a.machine.must('cat /etc/onramp/join.yaml'), /concurrency: "?1/);
	t.is(await holders(a), onlyHolder);
	t.is(
		await a.machine.must("cd /etc/onramp/bundle; stat -c '%a %U:%G %n' . *"),
		`750 root:onramp .\n${['cluster.env', 'hosts', 'istio-token', 'mesh.yaml', 'root-cert.pem'].map(name => `640 root:onramp ${name}\n`).join('')}`,
	);
});

step('user-data that runs again changes nothing, with the token and when that is scrubbed', async t => {
	const {machine} = a;
	const kept = () =>
		machine.must(
			"systemctl show -P InvocationID -P MainPID onramp onramp-agent onramp-envoy@a onramp-capture; find /etc/onramp /var/lib/onramp/identity /var/lib/onramp/envoy -printf '%p %i %m %u %g %T@\\n' | sort; cat /etc/machine-id",
		);
	await until('the trial renewal, which makes another generation', async () =>
		/"tokenlessRenewal":\s*"works"/.test(await machine.must('onramp status --json')),
	);
	const before = await kept();
	t.regex(before, /istio-token/);
	for (const text of [given, await readFile(machine.path(`${seedDirectory}/user-data`), 'utf8')]) {
		await writeSeed(a, 'i-1', text);
		await machine.must('cloud-init clean');
		const said = await machine.must(
			'cloud-init init --local; cloud-init init; cloud-init modules --mode=config; cloud-init modules --mode=final',
		);
		t.regex(said, /nothing has changed: \/etc\/onramp\/bundle has this bundle already\n.* is running; nothing to do/);
		t.regex(await machine.must('cloud-init status'), /status: done/);
		t.is(await kept(), before);
		t.is(await holders(a), onlyHolder);
		t.false((await machine.must('ls /run')).includes('onramp-join'));
	}
	t.not(await readFile(machine.path(`${seedDirectory}/user-data`), 'utf8'), given, 'the second was scrubbed');
	t.like(await untilAnswered(b, 'a'), {app: 'a', caller: idOf('b')});
});

step('after a reboot it knows itself again, and does nothing twice', async t => {
	const known = () =>
		a.machine.must('cat /etc/machine-id; ls /var/lib/cloud/instances; stat -c %Y /etc/onramp/bundle/*');
	const before = await known();
	await a.machine.reboot();
	await untilInTheMesh(t, a);
	t.is(await known(), before);
	t.is(await holders(a), onlyHolder);
	t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')});
});
