import {spawn} from 'node:child_process';
import {chmod, chown, mkdir, symlink} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import {
	address,
	appUid,
	backends,
	makeWorld,
	meshUid,
	primeTables,
	skippedWithout,
	toolPath,
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

for (const backend of backends)
	test.serial(`kill -9 › at any moment of apply, replace and remove, the next run mends it: ${backend}`, async t => {
		if (skippedWithout(t, toolsOf(backend))) return;
		const world = await makeWorld(t, {flags: ['--capture-backend', backend, '--capture-dns', 'all']});
		if (backend === 'iptables-legacy') await primeTables(world);
		const clean = await world.dump();
		const runAndKill = async (args: readonly string[], afterMs: number) => {
			const child = spawn(toolPath('ip')!, ['netns', 'exec', world.vm.name, ...world.captureCommand(args)], {
				stdio: 'ignore',
			});
			const ended = new Promise(resolve => child.once('exit', resolve));
			const timer = setTimeout(() => child.kill('SIGKILL'), afterMs);
			await ended;
			clearTimeout(timer);
		};
		const modes = [
			['apply', '--force'],
			['apply', '--force', '--capture-interception', 'tproxy'],
			['apply', '--force', '--capture-outbound-cidrs', '10.0.0.0/8'],
			['remove'],
		];
		for (let i = 0; i < 16; i++) await runAndKill(modes[i % modes.length]!, 150 + ((i * 37) % 450));
		const applied = await world.capture(['apply', '--force']);
		t.is(applied.code, 0, applied.stderr);
		const differences = (await world.capture(['verify'])).stdout
			.split('\n')
			.filter(line => line.startsWith('problem') && !line.includes('did not reach Envoy'));
		t.deepEqual(differences, []);
		t.is((await world.capture(['remove'])).code, 0);
		// What tells whose an empty chain of iptables-nft is goes with the rules; a kill in between leaves the chain.
		t.is(withoutEmptyChains(await world.dump()), withoutEmptyChains(clean));
	});

/** A dump without what holds no rule and lets everything pass. */
function withoutEmptyChains(dump: string): string {
	return dump
		.replaceAll(/\tchain \w+ \{\n\t\ttype [^\n]*policy accept;\n\t\}\n\n?/g, '')
		.replaceAll(/table \w+ \w+ \{\s*\}\n/g, '')
		.replaceAll(/\*\w+\n(?::\w+ ACCEPT \[0:0\]\n)*COMMIT\n/g, '');
}

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
