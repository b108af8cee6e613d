import {chmod, chown, mkdir, symlink} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import {until} from '../../support/mesh.ts';
import {
	address,
	appUid,
	backends,
	makeWorld,
	meshUid,
	primeTables,
	skippedWithout,
	toolsOf,
} from '../../support/netns.ts';

test.serial('capture › without the capability nothing is changed, and the message says what is needed', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const before = await world.dump();
	await chown(world.directory, appUid, appUid);
	const {code, stderr} = await world.capture(['apply', '--force'], {uid: appUid});
	t.is(code, 78);
	t.regex(stderr, /[Pp]ermi[\s\S]*needs CAP_NET_ADMIN/);
	t.is(await world.dump(), before);
});

test.serial(
	'capture › a state directory that others could have filled is refused, nothing having been changed',
	async t => {
		if (skippedWithout(t)) return;
		const world = await makeWorld(t);
		const before = await world.dump();
		const foreign = join(world.directory, 'foreign');
		await mkdir(foreign, {mode: 0o700});
		const link = join(world.directory, 'link');
		await symlink(foreign, link);
		const apply = () => world.capture(['apply', '--force', '--capture-state-dir', foreign]);
		await chmod(foreign, 0o770);
		t.regex((await apply()).stderr, /other users can write in it[\s\S]*nothing was changed/);
		await chmod(foreign, 0o700);
		await chown(foreign, appUid, appUid);
		t.regex((await apply()).stderr, /belongs to uid \d+, not 0[\s\S]*nothing was changed/);
		const {code, stderr} = await world.capture(['apply', '--force', '--capture-state-dir', link]);
		t.is(code, 78);
		t.regex(stderr, /is no directory of its own/);
		await chown(foreign, 0, 0);
		await mkdir(join(foreign, 'own'), {mode: 0o700});
		await chown(foreign, appUid, appUid);
		const exchanged = await world.capture(['apply', '--force', '--capture-state-dir', join(foreign, 'own')]);
		t.regex(exchanged.stderr, /others can exchange it, by way of .*foreign/);
		t.is(await world.dump(), before);
	},
);

test.serial('capture › CAP_NET_ADMIN is enough for nft, without root', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const {vm} = world;
	const before = await world.dump();
	await chown(world.directory, appUid, appUid);
	const as = (args: readonly string[]) =>
		vm.run('setpriv', [
			'--reuid',
			String(appUid),
			'--regid',
			String(appUid),
			'--clear-groups',
			'--inh-caps',
			'+net_admin',
			'--ambient-caps',
			'+net_admin',
			'--bounding-set',
			'-all,+net_admin',
			...world.captureCommand(args),
		]);
	const applied = await as(['apply', '--force']);
	t.is(applied.code, 0, applied.stderr);
	t.is((await as(['verify'])).stdout.includes('problem: ip'), false);
	t.is((await as(['remove'])).code, 0);
	t.is(await world.dump(), before);
});

test.serial('capture › a plan is shown in every form, and those for the tools are taken by them', async t => {
	if (skippedWithout(t, toolsOf('iptables-nft'))) return;
	const world = await makeWorld(t);
	const before = await world.dump();
	const show = async (format: string) => {
		const {code, stdout, stderr} = await world.capture(['plan', '--format', format, '--capture-dns', 'servers']);
		t.is(code, 0, stderr);
		return stdout;
	};
	t.regex(await show('text'), /connections of Envoy and the agent must not loop/);
	t.is(JSON.parse(await show('json')).backend, 'nft');
	await world.vm.must('nft', ['-c', '-f', '-'], await show('nft'));
	const [ip = '', ip6 = ''] = (await show('iptables')).split(/^# ip6tables.*$/m);
	await world.vm.must('iptables-nft-restore', ['--noflush', '--test'], ip);
	await world.vm.must('ip6tables-nft-restore', ['--noflush', '--test'], ip6);
	t.is(await world.dump(), before);
});

test.serial('capture › a missing user is an error before anything is changed', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const before = await world.dump();
	const {code, stderr} = await world.capture(['apply', '--force', '--capture-users', 'nobody-of-that-name']);
	t.is(code, 78);
	t.regex(stderr, /there is no user "nobody-of-that-name"/);
	t.is(await world.dump(), before);
});

for (const backend of ['iptables-nft', 'iptables-legacy'] as const)
	test.serial(`kill -9 › a program that outlives a killed change does not do it once more: ${backend}`, async t => {
		if (skippedWithout(t, toolsOf(backend))) return;
		const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
		if (backend === 'iptables-legacy') await primeTables(world);
		const [, , , , ...flags] = world.captureCommand(['apply']);
		const clean = await world.dump();
		for (const step of [1, 2, 3]) {
			const child = [join(import.meta.dirname, 'steps-child.ts'), 'apply', 'during', String(step), ...flags];
			await world.vm.run(process.execPath, child);
			t.regex(await world.processes(), /sleep 1/, 'it goes on');
			t.is((await world.capture(['apply', '--force'])).code, 0);
			await until('its end', async () => !(await world.processes()).includes('sleep 1'));
			t.notRegex((await world.capture(['verify'])).stdout, /problem: (?!IPv[46]: a packet)/, `program ${step}`);
			await world.capture(['remove']);
			t.is(await world.dump(), clean);
		}
	});

/** From nothing to rules, from these to others with fewer tables, from rules to nothing. */
const changes = [
	{from: undefined, to: ['apply', '--capture-interception', 'tproxy', '--capture-dns', 'all']},
	{
		from: ['apply', '--capture-interception', 'tproxy', '--capture-dns', 'all'],
		to: ['apply', '--capture-inbound-ports', '8080'],
	},
	{from: ['apply', '--capture-interception', 'tproxy', '--capture-dns', 'all'], to: ['remove']},
] as const;

for (const backend of backends)
	test.serial(
		`kill -9 › before and after each program that changes something, the next run mends it: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
			if (backend === 'iptables-legacy') await primeTables(world);
			const clean = await world.dump();
			// But for what keeps the kernel translating for a while: it captures nothing.
			const rules = async () =>
				(await world.vm.must('nft', ['-s', 'list', 'ruleset'])).replaceAll(
					/^table ip6? onramp_ending \{\n[\s\S]*?^\}\n/gm,
					'',
				);
			const [, , , , ...flags] = world.captureCommand(['apply']);
			const must = async ([command, ...more]: readonly string[]) => {
				const {code, stderr} = await world.capture([command!, ...(command === 'apply' ? ['--force'] : []), ...more]);
				t.is(code, 0, stderr);
			};
			for (const {from, to} of changes) {
				await must(to);
				const wanted = await rules();
				await must(['remove']);
				let isOver = false;
				for (let step = 1; !isOver; step++)
					// After one is before the next, but for those that run side by side.
					for (const moment of step === 1 ? ['before', 'after'] : ['after']) {
						const where = `${moment} program ${step} of ${to.join(' ')}`;
						if (from) await must(from);
						const old = await rules();
						const child = [join(import.meta.dirname, 'steps-child.ts'), to[0], moment, String(step), ...flags];
						const {code, stderr} = await world.vm.run(process.execPath, [...child, ...to.slice(1)]);
						t.is(stderr, '', where);
						isOver = code === 0;
						if (backend === 'nft') t.true([old, wanted].includes(await rules()), `${where}: neither old nor new`);
						await must(to);
						if (to[0] === 'apply') {
							const {stdout} = await world.capture(['verify', ...to.slice(1)]);
							t.notRegex(stdout, /problem: (?!IPv[46]: a packet)/, where);
							await must(['remove']);
						}
						t.is(await world.dump(), clean, `${where}, then removed`);
					}
			}
		},
	);

for (const backend of backends)
	test.serial(`settings › any to any other, then remove: nothing is left: ${backend}`, async t => {
		if (skippedWithout(t, toolsOf(backend))) return;
		const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
		if (backend === 'iptables-legacy') await primeTables(world);
		const clean = await world.dump();
		const settings: readonly (readonly string[])[] = [
			[
				'--capture-dns',
				'servers',
				'--capture-interception',
				'tproxy',
				'--capture-tproxy-mark',
				'77',
				'--capture-tproxy-route-table',
				'78',
			],
			[
				'--capture-inbound-ports',
				'',
				'--capture-outbound-cidrs',
				'10.0.0.0/8,fd00::/8',
				'--capture-outbound-ports',
				'1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17',
			],
			[
				'--capture-ipv6',
				'reject',
				'--capture-outbound-users',
				`${appUid},${appUid + 1}`,
				'--capture-on-agent-down',
				'block',
			],
			['--capture-ipv6', 'ignore', '--capture-bridges', 'outbound', '--capture-drop-invalid', 'true'],
			[
				'--capture-interception',
				'tproxy',
				'--capture-inbound-ports',
				'80,443',
				'--capture-dns',
				'all',
				'--capture-exclude-interfaces',
				'tun*,eth1',
			],
		];
		const dumps: string[] = [];
		for (const flags of [...settings, ...settings.toReversed()]) {
			const {code, stderr} = await world.capture(['apply', '--force', ...flags]);
			t.is(code, 0, stderr);
			const dump = await world.dump();
			t.regex((await world.capture(['apply', '--force', ...flags])).stdout, /unchanged/);
			t.is(await world.dump(), dump, 'apply twice is apply once');
			dumps.push(dump);
		}
		t.deepEqual(
			dumps.slice(0, 5).map(withoutOrder),
			dumps.slice(5).toReversed().map(withoutOrder),
			'the way there does not matter',
		);
		t.is((await world.capture(['remove', '--capture-dns', 'off'])).code, 0);
		t.is(await world.dump(), clean);
		t.not(meshUid, appUid);
		t.truthy(address);
	});

/** Chains and routes are shown in the order they were made in. */
const withoutOrder = (dump: string): readonly string[] =>
	dump
		.split('\n')
		.filter(line => /^(?:-A |\t\t.*comment)/.test(line) && !/made=|loaded=/.test(line))
		.toSorted();
