import {chown, mkdir, readFile, rm, stat} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import {appUid, makeWorld, skippedWithout} from '../../support/netns.ts';

test.serial('capture › how a change of rules ended is told to who may not look at them', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const stateDir = join(world.directory, 'told');
	const path = join(stateDir, 'outcome.json');
	const run = (command: string, ...flags: readonly string[]) =>
		world.capture([command, ...flags, '--capture-state-dir', stateDir]);
	const outcome = async () => JSON.parse(await readFile(path, 'utf8'));
	const unknownUser = ['--force', '--capture-users', 'nobody-of-that-name'] as const;

	t.is((await run('apply', ...unknownUser)).code, 78);
	t.like(await outcome(), {state: 'failed'});
	t.regex((await outcome()).reason, /there is no user "nobody-of-that-name"/);
	t.is((await stat(path)).mode & 0o777, 0o644, 'for every user');

	const {code, stdout, stderr} = await run('apply', '--force');
	t.is(code, 0, stderr);
	const [, rules, plan] = /, (\d+) rules with nft, plan (\w+)/.exec(stdout)!;
	t.like(await outcome(), {state: 'in', backend: 'nft', rules: Number(rules), plan});
	t.is((await run('apply', ...unknownUser)).code, 78);
	t.like(await outcome(), {state: 'in'}, 'who fails to change rules that are in leaves them there');

	t.is((await run('remove')).code, 0);
	t.like(await outcome(), {state: 'removed', reason: 'the rules were taken away'});
});

test.serial('capture › a unit whose rules went in and that has failed all the same says so', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const stateDir = join(world.directory, 'told');
	const outcome = async () => JSON.parse(await readFile(join(stateDir, 'outcome.json'), 'utf8'));
	const places = ['--capture-state-dir', stateDir] as const;
	t.is((await world.capture(['apply', '--force', ...places])).code, 0);
	const clean = (result: string) =>
		world.vm.run('env', [`SERVICE_RESULT=${result}`, ...world.captureCommand(['remove', ...places])]);
	// By systemd, after the end of the unit.
	t.is((await clean('signal')).code, 0);
	t.like(await outcome(), {state: 'failed'});
	t.regex((await outcome()).reason, /\(signal\)/);
	t.is((await clean('timeout')).code, 0);
	t.regex((await outcome()).reason, /\(signal\)/, 'the first reason is the one that counts');
	t.is((await clean('success')).code, 0);
	t.like(await outcome(), {state: 'removed'});
});

const ways = ['repair', 'report'] as const;
for (const onDrift of ways)
	test.serial(`capture › one look finds what others have changed, and does as told: ${onDrift}`, async t => {
		if (skippedWithout(t)) return;
		const world = await makeWorld(t, {flags: ['--capture-on-drift', onDrift]});
		const stateDir = join(world.directory, 'told');
		const places = ['--capture-state-dir', stateDir] as const;
		const outcome = async () => JSON.parse(await readFile(join(stateDir, 'outcome.json'), 'utf8'));
		// As whoever looks after the rules: by what they were made with, not by today's settings.
		const check = () => world.capture(['check', ...places, '--capture-inbound-ports', '7']);
		const silent = {code: 0, stdout: ''};
		t.like(await check(), silent, 'nobody has put rules in');
		t.is((await world.capture(['apply', '--force', ...places])).code, 0);
		const rules = await world.dump();
		t.like(await check(), silent);
		t.is(await world.dump(), rules, 'what was edited since then waits for the next apply');

		const inFront =
			'add table ip other; add chain ip other out { type nat hook output priority -110; }; add rule ip other out tcp dport 80 redirect to :1';
		await world.vm.must('nft', [inFront]);
		const first = await check();
		t.is(first.code, 1, 'nobody but who has put it there can mend that');
		t.regex(first.stdout, /table ip other, chain out: redirects connections before our rules/);
		t.like(await outcome(), {state: 'drifted'});
		const handles = () => world.vm.must('nft', ['-a', 'list', 'table', 'ip', 'onramp']);
		const left = await handles();
		t.like(await check(), silent, 'told once');
		t.is(await handles(), left, 'and not tried again, as each try is a change that leads to the next look');
		await world.vm.must('nft', ['delete', 'table', 'ip', 'other']);
		t.like(await check(), silent);
		t.like(await outcome(), {state: 'in'});

		await world.vm.must('nft', ['flush', 'chain', 'ip', 'onramp', 'nat_output']);
		const changed = await world.dump();
		const {code, stdout} = await check();
		t.regex(stdout, /^capture: not as planned: .*nat_output/m);
		if (onDrift === 'repair') {
			t.is(code, 0);
			t.regex(stdout, /^capture: repaired$/m);
			t.is(await world.dump(), rules);
			t.like(await outcome(), {state: 'in'});
		} else {
			t.is(code, 1);
			t.is(await world.dump(), changed);
			t.like(await outcome(), {state: 'drifted'});
			t.like(await check(), silent, 'told once');
			t.is((await world.capture(['apply', '--force', ...places])).code, 0);
			t.like(await outcome(), {state: 'in'});
		}
		t.is((await world.capture(['remove', ...places])).code, 0);
		t.like(await check(), silent, 'taken away on purpose');
		t.notRegex(await world.dump(), /onramp/);
	});

test.serial('capture › settings that others could have written are not gone by', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const stateDir = join(world.directory, 'told');
	const places = ['--capture-state-dir', stateDir] as const;
	t.is((await world.capture(['apply', '--force', ...places])).code, 0);
	await chown(stateDir, appUid, appUid);
	await world.vm.must('nft', ['flush', 'chain', 'ip', 'onramp', 'nat_output']);
	const changed = await world.dump();
	const {code, stderr} = await world.capture(['check', ...places]);
	t.is(code, 78);
	t.regex(stderr, /belongs to uid \d+, not 0/);
	t.is(await world.dump(), changed);
});

test.serial(
	'capture › rules are taken away also where that cannot be told, and nobody is told that they are in',
	async t => {
		if (skippedWithout(t)) return;
		const world = await makeWorld(t);
		const clean = await world.dump();
		const stateDir = join(world.directory, 'told');
		const places = ['--capture-state-dir', stateDir] as const;
		t.is((await world.capture(['apply', '--force', ...places])).code, 0);
		// A directory in its place takes no file, whoever asks.
		await rm(join(stateDir, 'outcome.json'));
		await mkdir(join(stateDir, 'outcome.json', 'in-the-way'), {recursive: true});
		const removed = await world.vm.run('env', [
			'SERVICE_RESULT=signal',
			...world.captureCommand(['remove', ...places]),
		]);
		t.is(removed.code, 0, removed.stderr);
		t.is(await world.dump(), clean);
	},
);
