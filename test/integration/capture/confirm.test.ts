import {spawn} from 'node:child_process';
import {readdirSync} from 'node:fs';
import {basename, join} from 'node:path';
import test from 'ava';
import {until} from '../../support/mesh.ts';
import {address, makeWorld, meshUid, skippedWithout, toolPath} from '../../support/netns.ts';

test.serial(
	'confirm › rules that nobody confirms go back by themselves, though whoever applied them was killed',
	async t => {
		if (skippedWithout(t)) return;
		const world = await makeWorld(t);
		const before = await world.dump();
		await world.startEnvoy();
		const apply = spawn(
			toolPath('ip')!,
			['netns', 'exec', world.vm.name, ...world.captureCommand(['apply', '--confirm', '3s'])],
			{stdio: 'ignore'},
		);
		// Written when the rules are in.
		const isLoaded = () =>
			readdirSync(world.directory, {recursive: true}).some(path => basename(String(path)) === 'loaded');
		await until('the rules to be in', isLoaded);
		apply.kill('SIGKILL');
		await until('the rules to be gone', async () => (await world.dump()) === before);
		// On a machine that is busy enough a probe may fail before.
		const report = /undone at .*: (not confirmed within 3 s|.* it did before, and does not any more)/;
		await until('the report', async () => report.test((await world.capture(['status'])).stdout));
		t.regex((await world.capture(['confirm'])).stdout, /too late|nothing waits/);
	},
);

test.serial('confirm › confirmed rules stay', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	await world.startEnvoy();
	const {code, stdout, stderr} = await world.capture(['apply', '--confirm', '2s']);
	t.is(code, 0, stderr);
	t.regex(stdout, /all that worked before works; undone in 2s unless you say/);
	t.is((await world.capture(['confirm'])).code, 0);
	await until('the guardian to leave', async () => !(await world.processes()).includes('guardian'));
	t.regex((await world.capture(['verify'])).stdout, /as planned/);
	t.regex(
		(await world.capture(['apply', '--confirm', '2s', '--confirm-by', 'probes', '--capture-inbound-ports', '80']))
			.stdout,
		/confirmed, all that worked/,
	);
});

test.serial('confirm › rules that cut the resolver go back at once, and the rule that did it is named', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t, {flags: ['--capture-dns', 'servers']});
	const {vm, far} = world;
	await world.startEnvoy();
	const [mesh, outside, app] = [await vm.peer(meshUid), await far.peer(0), await vm.peer()];
	for (const family of ['ip', 'ip6'] as const) {
		await outside.serveNames(address.far[family], 53, 'far');
		await mesh.serveNames(family === 'ip' ? '127.0.0.1' : '::1', 15_053, 'agent', {silent: true});
	}
	t.is((await world.capture(['apply', '--capture-dns', 'off'])).code, 0);
	const before = await world.dump();
	const {code, stderr} = await world.capture(['apply', '--force', '--confirm', '60s']);
	t.is(code, 1);
	t.regex(
		stderr,
		/undone: resolver 198\.18\.0\.1 answers: it did before, and does not any more; decided by outbound\.dns \(.*port 53.*to port 15053\)/,
	);
	t.is(await world.dump(), before, 'the rules of before are back');
	t.deepEqual(await app.askName(address.far.ip), {name: 'far'});
});

test.serial('confirm › rules that cut SSH from outside go back, and the rule that did it is named', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const {vm, far} = world;
	await world.startEnvoy();
	const [ssh, outside] = [await vm.peer(0), await far.peer(0)];
	await ssh.listen('0.0.0.0', 2222);
	const before = await world.dump();
	const [node, agent, , , ...flags] = world.captureCommand(['apply']);
	const child = [join(import.meta.dirname, 'ssh-child.ts'), agent!, '2222', address.vm.ip, ...flags];
	const asked: unknown[] = [];
	let isOver = false;
	const asking = (async () => {
		while (!isOver) asked.push((await outside.ask(address.vm.ip, 2222)).via);
	})();
	const {isOnTrial, undone} = JSON.parse(await vm.must(node!, child)) as {isOnTrial: boolean; undone?: object};
	isOver = true;
	await asking;
	t.true(isOnTrial);
	t.like(undone, {reason: 'SSH on port 2222 is reached from outside: it did before, and does not any more'});
	t.regex((undone as {rule?: string}).rule ?? '', /^inbound\.capture .*to port 15006/);
	t.true(asked.includes('envoy'), 'the rules were in');
	t.is(await world.dump(), before);
	t.like(await outside.ask(address.vm.ip, 2222), {via: 'direct'}, 'reached again');
});

test.serial('confirm › rules that cut something the settings name go back', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const {vm, far} = world;
	const before = await world.dump();
	const [outside, mesh] = [await far.peer(0), await vm.peer(meshUid)];
	await outside.listen('0.0.0.0', 5432);
	// In place of Envoy: takes connections and leads them nowhere.
	await mesh.listen('0.0.0.0', 15_001);
	await mesh.listen('0.0.0.0', 15_006);
	t.is(
		(
			await world.capture([
				'apply',
				'--confirm',
				'20s',
				'--confirm-by',
				'probes',
				'--capture-probes',
				`tcp://${address.far.ip}:5432`,
			])
		).code,
		0,
	);
	t.is((await world.capture(['remove'])).code, 0);
	t.is(await world.dump(), before);
	const refused = await world.capture([
		'apply',
		'--force',
		'--capture-outbound-port',
		'15999',
		'--confirm',
		'20s',
		'--capture-probes',
		`tcp://${address.far.ip}:5432`,
	]);
	t.is(refused.code, 1);
	t.regex(refused.stderr, /tcp:\/\/198\.18\.0\.1:5432 answers: .*decided by outbound\.capture/);
	t.is(await world.dump(), before);
});
