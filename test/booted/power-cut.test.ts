// The plug is pulled at random moments. Each time the machine boots and is in the mesh again, with a whole identity.
//
// What a machine writes lies on an ext4 of its own, which is shut down without its journal before the processes are
// killed: what was not synced is lost, names and contents alike, as far as ext4 goes. The kernel goes on, as
// there is one for all. A disk that lies about having written, or tears a sector, is not played.
import {createPrivateKey, randomInt, X509Certificate} from 'node:crypto';
import {writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {idOf} from '../support/captured-mesh.ts';
import {isLong, until} from '../support/mesh.ts';
import {seededRandom} from '../support/seeded-random.ts';
import {missingForForgetfulDisks} from './machine.ts';
import {
	buildPackages,
	install,
	joinMesh,
	makeBootedWorld,
	type Packages,
	skippedWithoutMachines,
	untilActive,
	untilAnswered,
	type Vm,
} from './world.ts';

interface Moment {
	readonly what: string;
	/** The plug is pulled within this time after the beginning. */
	readonly withinMs: number;
	/** The plug is pulled again while the machine boots; in the long form that may happen at any of them. */
	readonly isBootCut?: boolean;
	/** What goes on meanwhile, and how an admin mends what it was cut off from. */
	readonly begin?: (vm: Vm) => Promise<unknown>;
	readonly mend?: (vm: Vm) => Promise<unknown>;
}

const seed = Number(process.env['ONRAMP_SEED'] ?? (isLong ? randomInt(1_000_000) : 1));
const wait = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms));

function momentsOf(packages: Packages, newer: Packages): readonly Moment[] {
	let isNewer = false;
	let wanted = '';
	const join: Moment = {
		what: 'a join',
		withinMs: 3000,
		begin: ({machine}) => machine.sh('onramp join /root/bundle --wait 60s --proxy-termination-drain 2s'),
		mend: joinMesh,
	};
	return [
		join,
		{what: 'the moment after a join', withinMs: 0, begin: joinMesh},
		{what: 'a restart of the agent', withinMs: 2000, begin: ({machine}) => machine.sh('systemctl restart onramp')},
		{
			what: 'an upgrade or downgrade',
			withinMs: 2500,
			begin: async ({machine}) => {
				isNewer = !isNewer;
				wanted = (isNewer ? newer : packages).of('onramp');
				return machine.sh(`dpkg --force-confold -i /root/${wanted}`);
			},
			mend: async ({machine}) => {
				await machine.must('dpkg --configure -a');
				const said = await machine.must('dpkg -s onramp onramp-envoy');
				if (said.match(/^Status: install ok installed$/gm)?.length !== 2)
					await machine.must(`dpkg --force-confold -i /root/${wanted}`);
			},
		},
		{what: 'a replacement of Envoy', withinMs: 8000, begin: ({machine}) => machine.sh('onramp proxy replace')},
		{what: 'nothing at all', withinMs: 2000, isBootCut: true},
	];
}

/** Key and certificate belong together, whatever generation they are of. */
async function assertWhole(t: ExecutionContext, {machine}: Vm): Promise<void> {
	const current = '/var/lib/onramp/identity/current';
	const [chain, key] = await Promise.all(
		['cert-chain.pem', 'key.pem'].map(name => machine.must(`cat ${current}/${name}`)),
	);
	const certificate = new X509Certificate(chain!);
	t.true(certificate.checkPrivateKey(createPrivateKey(key!)));
	t.is(certificate.subjectAltName, `URI:${idOf('a')}`);
}

test.serial('package › a power cut at any moment, and the machine is in the mesh again', async t => {
	if (await skippedWithoutMachines(t)) return;
	const reason = missingForForgetfulDisks();
	if (reason !== undefined) {
		t.log(`skipped: ${reason}`);
		t.pass();
		return;
	}
	t.log(`ONRAMP_SEED=${seed}`);
	const random = seededRandom(seed);
	const [packages, newer] = [await buildPackages(), await buildPackages({version: '0.2.0', names: 'onramp'})];
	const world = await makeBootedWorld(t);
	const [a, b] = await Promise.all([world.boot('a', {isForgetful: true}), world.boot('b')]);
	for (const vm of [a, b]) await install(vm, packages);
	await joinMesh(b);
	const {machine} = a;
	for (const each of [packages, newer])
		await machine.copy(join(each.directory, each.of('onramp')), `/root/${each.of('onramp')}`);
	await machine.copy(a.bundle, '/root/bundle');
	await machine.must("printf 'proxy: {drain: 2s, replace-ceiling: 10s}\\n' >> /etc/onramp/onramp.yaml; sync -f /");

	const all = momentsOf(packages, newer);
	// The first two are once; the others in any order.
	const moments = isLong
		? [...all, ...Array.from({length: 20}, () => all[2 + Math.floor(random() * (all.length - 2))]!)]
		: all;
	let rules: string | undefined;
	for (const {what, withinMs, isBootCut, begin, mend} of moments) {
		const [afterMs, bootMs] = [random() * withinMs, random() * 6000];
		const isTwice = isBootCut || (isLong && random() < 0.5);
		const goesOn = begin?.(a).catch(() => {});
		await (withinMs === 0 ? goesOn : wait(afterMs));
		await writeFile(machine.path('/root/unsynced'), 'x');
		await machine.crash(isTwice ? bootMs : undefined);
		const startedMs = performance.now();
		await goesOn;
		t.is(await machine.must('cat /root/unsynced 2>/dev/null; rm -f /root/unsynced'), '', 'the disk does forget');
		await mend?.(a);
		await machine.must('onramp status --wait 60s');
		await untilActive(a, 'onramp-ready.target');
		t.like(await untilAnswered(a, 'b'), {app: 'b', caller: idOf('a')}, what);
		t.like(await untilAnswered(b, 'a'), {app: 'a', caller: idOf('b')}, what);
		const again = isTwice ? `, and again ${Math.round(bootMs)} ms after power was back` : '';
		t.log(
			`${what}, cut after ${Math.round(afterMs)} ms${again}: serves ${Math.round(performance.now() - startedMs)} ms after the boot`,
		);
		await assertWhole(t, a);
		t.is(await machine.must('systemctl --failed --plain --no-legend'), '', what);
		const planned = await machine.must('nft -s list ruleset');
		rules ??= planned;
		t.is(planned, rules, what);
		const envoys = async () =>
			Promise.all(['a', 'b'].map(name => machine.show(`onramp-envoy@${name}.service`, 'ActiveState')));
		await until('a single Envoy', async () => (await envoys()).sort().join() === 'active,inactive');
		const find = 'find /var/lib/onramp /etc/onramp -name ".onramp-tmp-*" -mmin +1';
		t.is(await machine.must(`${find} -size +100k`), '', 'what is left of writes that were cut off is small');
	}
	t.regex(await machine.must('cat /etc/onramp/onramp.yaml'), /drain: 2s/);
});
