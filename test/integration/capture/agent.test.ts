import {chown, readdir, readFile, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {
	CapturedVm,
	type Control,
	capabilitiesOf,
	hostOf,
	idOf,
	startControlPlane,
	type VmOptions,
} from '../../support/captured-mesh.ts';
import {gateOf, startTimeOf, until as untilWithin} from '../../support/mesh.ts';
import {
	address,
	addVm,
	appUid,
	execute,
	makeWorld,
	meshUid,
	secondWire,
	skippedWithout,
	toolPath,
	toolsOf,
	type World,
} from '../../support/netns.ts';

/** A step is a process with a dozen more; a busy machine takes its time for them. */
const until = <T>(what: string, look: () => T | Promise<T>) => untilWithin(what, look, 60_000);

const vips = {a: '240.240.0.11', b: '240.240.0.12'} as const;

interface Setting {
	readonly world: World;
	readonly control: Control;
	readonly clean: string;
	vm(options?: Partial<VmOptions>): Promise<CapturedVm>;
}

/** One VM and a control plane; what the VM had before anybody touched its rules. */
async function setUp(t: ExecutionContext, flags: readonly string[] = []): Promise<Setting> {
	const world = await makeWorld(t);
	const control = await startControlPlane(world, {a: {vip: vips.a}, b: {vip: vips.b}});
	const clean = await world.dump();
	const defaults = {group: 'a', vm: world.vm, at: address.vm.ip, flags: ['--capture', ...flags]};
	return {world, control, clean, vm: options => CapturedVm.create(world, control, {...defaults, ...options})};
}

/** An ordinary program of an ordinary user, with neither proxy setting nor address. */
const curl = ({options: {vm}}: CapturedVm, url: string) =>
	execute('ip', [
		...['netns', 'exec', vm.name, 'setpriv', '--reuid', String(appUid), '--regid', String(appUid), '--clear-groups'],
		...[toolPath('curl')!, '--silent', '--show-error', '--max-time', '10', url],
	]);

/** First packets to addresses of the mesh: none has a place on any wire, as only Envoy knows what they stand for. */
async function watchWire({far}: World): Promise<() => Promise<number>> {
	await far.must(
		'nft',
		['-f', '-'],
		'table ip watch { chain seen { type filter hook prerouting priority -300;\nip daddr 240.240.0.0/16 counter; }\n}\n',
	);
	return async () => Number(/packets (\d+)/.exec(await far.must('nft', ['list', 'table', 'ip', 'watch']))![1]);
}

const isRunning = (pid: number): Promise<boolean> =>
	readFile(`/proc/${pid}/stat`, 'utf8').then(
		text => !text.includes(') Z '),
		() => false,
	);

const applied = (vm: CapturedVm) => readFile(join(vm.directory, 'run/capture/applied.json'), 'utf8').catch(() => '');

test.serial(
	'agent › captures by itself: plain client, name, rules, mutual TLS, other side; over its crash; and leaves nothing behind',
	async t => {
		if (skippedWithout(t, ['ip', 'nft', 'setpriv', 'curl'])) return;
		const {world, clean, vm} = await setUp(t);
		const second = await addVm(t, world);
		const cleanSecond = (await second.must('nft', ['list', 'ruleset'])).trim();
		const a = await vm();
		const b = await vm({group: 'b', vm: second, at: secondWire.vm});
		const wire = await watchWire(world);
		for (const each of [a, b]) each.start();
		for (const each of [a, b]) {
			const report = await each.untilReady();
			t.regex(gateOf(report, 'capture').reason, /^\d+ rules with nft; all that worked before works$/);
		}
		t.is(await capabilitiesOf(a.pid), '0000000000001000', 'CAP_NET_ADMIN and nothing else');

		for (const [from, to, caller, callee] of [
			[a, 'b', 'a', 'b'],
			[b, 'a', 'b', 'a'],
		] as const) {
			await from.untilAnswers(`http://${hostOf(callee)}/`);
			const {code, stdout, stderr} = await curl(from, `http://${hostOf(callee)}/`);
			t.is(code, 0, stderr);
			t.like(JSON.parse(stdout), {app: to, caller: idOf(caller), peer: '::ffff:127.0.0.6'});
		}
		const stranger = await world.far.peer(0);
		t.truthy((await stranger.send<{error?: string}>('get', {url: `http://${address.vm.ip}:8080/`})).error);

		const rules = await world.dump();
		const envoy = (await a.status()).parts['proxy'] as {pid: number};
		const startedAt = startTimeOf(envoy.pid);
		let isAsking = true;
		const asked: (string | undefined)[] = [];
		const asking = (async () => {
			while (isAsking) {
				const {app, error} = await a.get(`http://${vips.b}/`, 3000);
				asked.push(app ?? error);
			}
		})();
		a.signal('SIGKILL');
		t.is(await a.exit, null);
		await until('what it listened with to be gone', async () => !(await world.processes()).includes('monitor'));
		const before = asked.length;
		await until('requests while there is no agent', () => asked.length > before + 20);
		t.is(await world.dump(), rules, 'held');
		const logged = a.log.length;
		a.start();
		const report = await a.untilReady();
		t.regex(gateOf(report, 'capture').reason, /rules with nft, found in place$/);
		t.notRegex(a.log.slice(logged), /"wasOnTrial":true/);
		isAsking = false;
		await asking;
		t.deepEqual([...new Set(asked)], ['b'], 'Envoy goes on, so nothing fails');
		t.is(startTimeOf(((await a.status()).parts['proxy'] as {pid: number}).pid), startedAt, 'the same Envoy');
		t.is(await world.dump(), rules, 'untouched');
		t.like(await a.untilAnswers(`http://${hostOf('b')}/`), {app: 'b', caller: idOf('a')});

		// Another agent beside it is not let in, and so touches nothing.
		t.is(await a.startAnother(), 1);
		t.is(await world.dump(), rules);

		// Without Envoy either: refused, and not a packet.
		const envoyPid = ((await a.status()).parts['proxy'] as {pid: number}).pid;
		a.signal('SIGKILL');
		await a.exit;
		process.kill(envoyPid, 'SIGKILL');
		const refused = await until('a refusal', async () => {
			const answers = await Promise.all(Array.from({length: 20}, () => a.get(`http://${vips.b}/`)));
			return answers.every(({error}) => error === 'ECONNREFUSED') ? answers : undefined;
		});
		t.is(refused.length, 20);
		a.start();
		await a.untilReady();
		await a.untilAnswers(`http://${vips.b}/`);
		t.is(await wire(), 0, 'first packets on the wire');

		t.is(await a.stop(), 0);
		t.is(await world.dump(), clean);
		t.truthy((await a.get(`http://${hostOf('b')}/`, 2000)).error, 'as before');
		t.is(await b.stop(), 0);
		t.is((await second.must('nft', ['list', 'ruleset'])).trim(), cleanSecond);

		a.start();
		t.regex(gateOf(await a.untilReady(), 'capture').reason, /^\d+ rules with nft$/, 'proved before: no second trial');
		t.is(await a.stop(), 0);
		t.is(await world.dump(), clean);
	},
);

test.serial('agent › rules go when Envoy has drained and before it ends', async t => {
	if (skippedWithout(t)) return;
	const {world, clean, vm} = await setUp(t);
	const a = await vm({flags: ['--capture', '--proxy-termination-drain', '2s']});
	a.start();
	const report = await a.untilReady();
	const {pid} = report.parts['proxy'] as {pid: number};
	const order: string[] = [];
	const note = (what: string) => {
		if (!order.includes(what)) order.push(what);
	};
	a.signal('SIGTERM');
	const ended = a.exit.then(() => true);
	let isOver = false;
	void ended.then(() => {
		isOver = true;
	});
	while (!isOver) {
		// Envoy first: what has ended by then must have been without rules.
		const isAlive = await isRunning(pid);
		const [now, status] = [await world.vm.run('nft', ['list', 'tables']), await a.status().catch(() => undefined)];
		const state = (status?.parts['registration'] as {state?: string} | undefined)?.state;
		if (state === 'withdrawn') note('withdrawn');
		if ((status?.parts['proxy'] as {state?: string} | undefined)?.state === 'draining') note('draining');
		if (now.code === 0 && !now.stdout.includes('onramp')) note('rules off');
		if (!isAlive) note('envoy ended');
	}
	t.is(await a.exit, 0);
	// The agent ends with it, at times between two looks.
	if (!(await isRunning(pid))) note('envoy ended');
	t.deepEqual(order, ['withdrawn', 'draining', 'rules off', 'envoy ended'], a.log);
	t.is(await world.dump(), clean);
});

test.serial('agent › without the capability it says so before it touches anything', async t => {
	if (skippedWithout(t)) return;
	const {world, clean, vm} = await setUp(t);
	const a = await vm();
	a.start({isAdmin: false});
	t.is(await a.exit, 78);
	t.regex(a.log, /capture\.by-agent\): this process has no CAP_NET_ADMIN[\s\S]*AmbientCapabilities=CAP_NET_ADMIN/);
	t.is(await world.dump(), clean);
	t.notRegex(await world.processes(), /envoy/);
});

test.serial('agent › join with capture says so and what came of it; root is then who is not captured', async t => {
	if (skippedWithout(t)) return;
	const {world, clean, vm} = await setUp(t);
	const a = await vm({flags: ['--config', join(world.directory, 'a/onramp.yaml')]});
	await writeFile(join(a.directory, 'onramp.yaml'), '');
	const refused = a.join({uid: meshUid, flags: ['--capture']});
	t.is(await refused.exit, 78);
	t.regex(refused.said(), /this process has no CAP_NET_ADMIN/);
	t.deepEqual((await readdir(a.directory)).toSorted(), ['bundle', 'onramp.yaml'], 'nothing was kept');

	// Where root puts down what it reads back, nobody else may write.
	await chown(a.directory, 0, 0);
	const joined = a.join({flags: ['--capture', '--capture-users', 'root', '--capture-groups', '']});
	await until('readiness', () => joined.said().includes('ready: spiffe')).catch(error => {
		throw new Error(joined.said(), {cause: error});
	});
	t.regex(
		joined.said(),
		/^traffic capture: the agent puts rules in once Envoy answers; what works now must work then/m,
	);
	t.regex(joined.said(), /^ {2}capture: \d+ rules with nft; all that worked before works$/m);
	t.regex(await world.dump(), /skuid 0 .*return/);
	joined.child.kill('SIGINT');
	t.is(await joined.exit, 0);
	t.is(await world.dump(), clean);
});

test.serial('agent › Envoy as a user whom the rules would capture: refused, and the gate says why', async t => {
	if (skippedWithout(t)) return;
	const {world, clean, vm} = await setUp(t);
	const a = await vm({flags: ['--capture', '--capture-users', '15999']});
	a.start();
	const report = await a.until('says why', each => /uid/.test(gateOf(each, 'capture').reason));
	t.false(report.ready);
	t.regex(gateOf(report, 'capture').reason, /Envoy runs as uid 15337, which is not in capture\.users \(15999\)/);
	t.is(await world.dump(), clean);
	t.is(await a.stop(), 0);
});

/** The metadata server as something that works until the rules come. */
async function metadata({far}: World) {
	const peer = await far.peer(0);
	await peer.listen('169.254.169.254', 80);
	return {
		goAway: () =>
			far.must(
				'nft',
				['-f', '-'],
				'table ip away { chain in { type filter hook input priority 0; ip daddr 169.254.169.254 drop; }\n}\n',
			),
		comeBack: () => far.must('nft', ['delete', 'table', 'ip', 'away']),
	};
}

/** What worked before has been noted by then, and the rules are not yet in. */
const isArmed = (vm: CapturedVm) =>
	until('the guardian', () =>
		readFile(join(vm.directory, 'run/capture/armed')).then(
			() => true,
			() => false,
		),
	);

test.serial('agent › rules that cut something off go back; the gate says what; a retry puts them in', async t => {
	if (skippedWithout(t)) return;
	const {world, clean, vm} = await setUp(t);
	const server = await metadata(world);
	const a = await vm();
	a.start();
	await isArmed(a);
	await server.goAway();
	const report = await a.until('has undone it', each => /undone/.test(gateOf(each, 'capture').reason));
	t.false(report.ready);
	t.regex(
		gateOf(report, 'capture').reason,
		/undone: the metadata server answers: it did before, and does not any more/,
	);
	t.is(await world.dump(), clean);
	await server.comeBack();
	await a.retry();
	t.regex(gateOf(await a.untilReady(), 'capture').reason, /all that worked before works/);
	t.is(await a.stop(), 0);
	t.is(await world.dump(), clean);
});

test.serial('agent › a stop while new rules are on trial takes them away, and nothing brings them back', async t => {
	if (skippedWithout(t)) return;
	const {world, clean, vm} = await setUp(t);
	const server = await metadata(world);
	const a = await vm();
	a.start();
	await isArmed(a);
	// So that the trial goes on for a while.
	await server.goAway();
	await until('the rules', async () => (await applied(a)) !== '');
	t.is(await a.stop(), 0);
	t.is(await world.dump(), clean);
	await until('the guardian to leave', async () => !(await world.processes()).includes('guardian'));
	t.is(await world.dump(), clean);
});

test.serial('agent › killed while new rules are on trial: they are kept if they hold', async t => {
	if (skippedWithout(t)) return;
	const {world, clean, vm} = await setUp(t);
	const a = await vm();
	a.start();
	await isArmed(a);
	a.signal('SIGKILL');
	await a.exit;
	await until('the rules, and no guardian', async () => {
		const processes = await world.processes();
		return (await applied(a)) !== '' && !/capture (guardian|step)/.test(processes);
	});
	a.start();
	t.regex(gateOf(await a.untilReady(), 'capture').reason, /found in place$/);
	t.is(await a.stop(), 0);
	t.is(await world.dump(), clean);
});

for (const backend of ['nft', 'iptables-nft'] as const)
	test.serial(
		`agent › what others change is put right within seconds; what is removed by hand stays removed: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const {world, clean, vm} = await setUp(t, ['--capture-backend', backend]);
			const a = await vm();
			a.start();
			await a.untilReady();
			// iptables-nft makes the tables of both families at once, so that their order differs.
			const dump = async () => (await world.dump()).split('\n').toSorted().join('\n');
			const rules = await dump();
			await world.vm.must('nft', ['flush', 'ruleset']);
			await until('the repair', async () => (await dump()) === rules);
			await a.until('says so', ({parts}) => (parts['capture'] as {repairs?: number}).repairs === 1);
			t.true((await a.status()).ready);

			const {code, stderr} = await a.onramp('capture', 'remove');
			t.is(code, 0, stderr);
			const report = await a.until('notices', each => !gateOf(each, 'capture').open);
			t.regex(gateOf(report, 'capture').reason, /were taken away/);
			t.is(await world.dump(), clean);
			await a.retry();
			await a.untilReady();
			t.is(await dump(), rules);
			t.is(await a.stop(), 0);
			t.is(await world.dump(), clean);
		},
	);

test.serial('agent › rules that this user may not load turn it red, and nothing is changed', async t => {
	if (skippedWithout(t, toolsOf('iptables-legacy'))) return;
	const {world, clean, vm} = await setUp(t, ['--capture-backend', 'iptables-legacy']);
	const a = await vm();
	a.start();
	const report = await a.until('says why', each => gateOf(each, 'capture').hint !== undefined);
	t.false(report.ready);
	t.regex(`${gateOf(report, 'capture').reason} ${gateOf(report, 'capture').hint}`, /CAP_NET_RAW/);
	t.is(await a.stop(), 0);
	t.is(await world.dump(), clean);
});

test.serial(
	'agent › with on-drift report, rules that others have changed turn it red, and stay as they are',
	async t => {
		if (skippedWithout(t)) return;
		const {world, vm} = await setUp(t, ['--capture-on-drift', 'report']);
		const a = await vm();
		a.start();
		await a.untilReady();
		await world.vm.must('nft', ['flush', 'table', 'ip', 'onramp']);
		const changed = await world.dump();
		const report = await a.until('turns red', each => !gateOf(each, 'capture').open);
		t.regex(gateOf(report, 'capture').reason, /^not as planned: /);
		t.is(await world.dump(), changed);
		t.is(await a.stop(), 0);
	},
);

test.serial(
	'agent › with on-agent-down block, what ought to be captured is refused after a stop, until the next start',
	async t => {
		if (skippedWithout(t)) return;
		const {world, clean, vm} = await setUp(t, ['--capture-on-agent-down', 'block']);
		const far = await world.far.peer(0);
		await far.send('serveHttp', {port: 8090, name: 'far'});
		const url = `http://${address.far.ip}:8090/`;
		const a = await vm();
		t.is((await a.get(url)).app, 'far');
		a.start();
		await a.untilReady();
		t.is((await a.untilAnswers(url)).app, 'far', 'through Envoy');
		t.is(await a.stop(), 0);
		t.is((await a.get(url)).error, 'ECONNREFUSED');
		a.start();
		await a.untilReady();
		t.is((await a.untilAnswers(url)).app, 'far', 'through Envoy again');
		t.is(await a.stop(), 0);
		t.is((await a.onramp('capture', 'remove', '--all')).code, 0);
		t.is(await world.dump(), clean);
	},
);

test.serial(
	'agent › with on-agent-down bypass, traffic goes past an Envoy that stays away, and through it again',
	async t => {
		if (skippedWithout(t)) return;
		const {world, clean, vm} = await setUp(t, ['--capture-on-agent-down', 'bypass']);
		const a = await vm();
		a.start();
		await a.untilReady();
		const rules = await world.dump();
		const {pid} = (await a.status()).parts['proxy'] as {pid: number};
		process.kill(pid, 'SIGSTOP');
		await until('the bypass', async () => (await world.dump()) === clean);
		process.kill(pid, 'SIGCONT');
		// Ready is what it may still be said to be, until its silence is noticed.
		await until('the rules', async () => (await world.dump()) === rules);
		await a.untilReady();
		t.is(await a.stop(), 0);
		t.is(await world.dump(), clean);
	},
);
