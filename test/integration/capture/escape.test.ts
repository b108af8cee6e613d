// Ways in which a connection of the application has been seen to leave without passing Envoy although the rules were
// in place, each made to happen once. docs/decisions/0010-escape-guard.md has the causes.
import type {ChildProcess} from 'node:child_process';
import {readdirSync, readFileSync} from 'node:fs';
import test, {type ExecutionContext} from 'ava';
import {until} from '../../support/mesh.ts';
import {
	type Answer,
	address,
	backends,
	makeWorld,
	meshUid,
	type Peer,
	skippedWithout,
	toolsOf,
	type World,
} from '../../support/netns.ts';

const families = ['ip', 'ip6'] as const;
type Family = (typeof families)[number];

interface Scene {
	readonly world: World;
	/** Stands in for Envoy's own connections: same user, ports of its choice. */
	readonly mesh: Peer;
	readonly app: Peer;
	readonly envoy: ChildProcess;
	readonly backend: (typeof backends)[number];
}

async function makeScene(t: ExecutionContext, backend: Scene['backend'], ...flags: readonly string[]): Promise<Scene> {
	const world = await makeWorld(t, {flags: ['--capture-backend', backend, ...flags]});
	const envoy = await world.startEnvoy();
	const [app, mesh, outside] = [await world.vm.peer(), await world.vm.peer(meshUid), await world.far.peer(0)];
	for (const host of ['0.0.0.0', '::']) await outside.listen(host, 80);
	const applied = await world.capture(['apply']);
	t.is(applied.code, 0, applied.stderr);
	return {world, mesh, app, envoy, backend};
}

/** Takes away what keeps connections from escaping, and leaves what redirects. */
async function removeGuard({world: {vm}}: Scene): Promise<void> {
	for (const family of families) await vm.must('nft', ['flush', 'chain', family, 'onramp', 'filter_output']);
}

function isStopped(pid: number): boolean {
	return readdirSync(`/proc/${pid}/task`).every(thread =>
		/\) [Tt] /.test(readFileSync(`/proc/${pid}/task/${thread}/stat`, 'latin1')),
	);
}

const holds = {ip: 1, ip6: 2} as const;

let nextPort = 20_000;

/** Envoy's connection is reset by the other end; its entry in connection tracking is one of a closed connection. */
async function reuseAfterReset({mesh, app}: Scene, family: Family): Promise<Answer> {
	const fromPort = nextPort++;
	await mesh.ask(address.far[family], 80, {fromPort, say: 'reset'});
	return app.ask(address.far[family], 80, {fromPort, withinMs: 20_000});
}

/** Envoy gives up before there is an answer; the entry is one of a connection that is still to come about. */
async function reuseAfterGivingUp({world: {far}, mesh, app}: Scene, family: Family): Promise<Answer> {
	const fromPort = nextPort++;
	await far.must(
		'nft',
		['-f', '-'],
		'table inet deaf { chain in { type filter hook input priority 0; tcp dport 80 drop; }\n}\n',
	);
	await mesh.ask(address.far[family], 80, {fromPort, withinMs: 200});
	await far.must('nft', ['delete', 'table', 'inet', 'deaf']);
	return app.ask(address.far[family], 80, {fromPort, withinMs: 20_000});
}

const traps = {
	'a port of a connection of Envoy that the other end has reset': reuseAfterReset,
	'a port of a connection that Envoy has given up': reuseAfterGivingUp,
};

for (const backend of backends)
	for (const [what, reuse] of Object.entries(traps))
		test.serial(`escape › the application takes ${what}: ${backend}`, async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const scene = await makeScene(t, backend);
			for (const family of families) {
				const answer = await reuse(scene, family);
				if (backend === 'nft') t.like(answer, {via: 'envoy'}, `${family}: late at most`);
				else t.not(answer.via, 'direct', `${family}: ${JSON.stringify(answer)}`);
				t.like(await scene.app.ask(address.far[family], 80), {via: 'envoy'}, `${family}: the next one`);
			}
			if (backend !== 'nft') return;
			await removeGuard(scene);
			for (const family of families)
				t.like(await reuse(scene, family), {via: 'direct'}, `${family}: the trap catches what is not guarded`);
		});

/** Counts what the application itself has put on the wire, by the port it came from. */
async function watch({far}: World, fromPort: number): Promise<() => Promise<number>> {
	await far.must(
		'nft',
		['-f', '-'],
		`table inet watch${fromPort} { chain in { type filter hook input priority -300; tcp sport ${fromPort} tcp flags & rst == 0 counter; }\n}\n`,
	);
	return async () =>
		Number(/packets (\d+)/.exec(await far.must('nft', ['list', 'table', 'inet', `watch${fromPort}`]))![1]);
}

for (const backend of backends)
	test.serial(
		`escape › Envoy takes a port of a connection of the application that it has reset: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const {world, mesh, app, envoy} = await makeScene(t, backend);
			let catcher = envoy;
			for (const family of families) {
				const fromPort = nextPort++;
				await app.ask(address.far[family], 80, {fromPort, hold: holds[family]});
				// A process that dies with something unread makes the kernel send a reset in its name.
				catcher.kill('SIGSTOP');
				// One thread takes the signal and stops the others, in its own time.
				await until('all threads to stand still', () => isStopped(catcher.pid!));
				const answer = app.askAgain(holds[family]);
				const early = answer.then(each => {
					throw new Error(`answered by an Envoy that was stopped: ${JSON.stringify(each)}`);
				});
				early.catch(() => {}); // It is the answer below.
				const unread = until('Envoy to leave something unread', async () =>
					/^ESTAB +[1-9]/m.test(await world.vm.must('ss', ['-H', '-t', '-n', 'sport', '=', ':15001'])),
				);
				await Promise.race([unread, early]);
				catcher.kill('SIGKILL');
				t.deepEqual(await answer, {error: 'ECONNRESET'});
				catcher = await world.startEnvoy();
				const own = await mesh.ask(address.far[family], 80, {fromPort, withinMs: 20_000});
				if (backend === 'nft') t.like(own, {via: 'direct'}, family);
				else t.not(own.via, 'envoy', `${family}: ${JSON.stringify(own)}`);
			}
		},
	);

for (const backend of backends)
	test.serial(`escape › connection tracking is emptied while connections are open: ${backend}`, async t => {
		if (skippedWithout(t, [...toolsOf(backend), 'conntrack'])) return;
		const {world, app} = await makeScene(t, backend, '--capture-existing-connections', 'end');
		for (const family of families) {
			const fromPort = nextPort++;
			const count = await watch(world, fromPort);
			t.like(await app.ask(address.far[family], 80, {hold: holds[family], fromPort}), {via: 'envoy'});
			await world.vm.must('conntrack', ['-F']);
			t.is((await app.askAgain(holds[family])).via, undefined, `${family}: the connection has ended`);
			t.is(await count(), 0, `${family}: nothing of it left in plaintext`);
		}
	});

for (const backend of backends)
	test.serial(`escape › connections from before the rules are ended if the settings say so: ${backend}`, async t => {
		if (skippedWithout(t, toolsOf(backend))) return;
		const world = await makeWorld(t, {flags: ['--capture-backend', backend, '--capture-existing-connections', 'end']});
		const {vm, far} = world;
		await world.startEnvoy();
		const [app, mesh, outside, ssh] = [await vm.peer(), await vm.peer(meshUid), await far.peer(0), await vm.peer(0)];
		for (const host of ['0.0.0.0', '::']) await outside.listen(host, 80);
		for (const family of families) {
			await app.ask(address.far[family], 80, {hold: holds[family]});
			await mesh.ask(address.far[family], 80, {hold: holds[family]});
			// On the wire no different from a session that came in, when its server is the first to speak again.
			await ssh.ask(address.far[family], 80, {hold: holds[family], fromPort: 22});
		}
		t.is((await world.capture(['apply'])).code, 0);
		for (const family of families) {
			t.deepEqual(await app.askAgain(holds[family]), {error: 'ECONNRESET'}, family);
			t.like(await mesh.askAgain(holds[family]), {via: 'direct'}, `${family}: of Envoy's user`);
			t.like(await ssh.askAgain(holds[family]), {via: 'direct'}, `${family}: SSH`);
		}
	});

for (const [backend, mode] of backends.flatMap(each => [[each, 'redirect'] as const, [each, 'tproxy'] as const]))
	test.serial(
		`escape › a peer takes the port of its connection from before the rules: ${backend}, ${mode}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend, '--capture-interception', mode]});
			await world.startEnvoy({isTransparent: mode === 'tproxy'});
			const [app, outside] = [await world.vm.peer(), await world.far.peer(0)];
			const fromPort = {ip: nextPort++, ip6: nextPort++};
			for (const host of ['0.0.0.0', '::']) await app.listen(host, 8080);
			for (const family of families)
				t.like(await outside.ask(address.vm[family], 8080, {hold: holds[family], fromPort: fromPort[family]}), {
					via: 'direct',
				});
			t.is((await world.capture(['apply'])).code, 0);
			for (const family of families) {
				t.like(await outside.askAgain(holds[family]), {via: 'direct'}, `${family}: the old one goes on`);
				t.deepEqual(await outside.askAgain(holds[family], {say: 'reset'}), {error: 'ECONNRESET'});
				const answer = await outside.ask(address.vm[family], 8080, {fromPort: fromPort[family], withinMs: 20_000});
				if (backend === 'nft') t.like(answer, {via: 'envoy'}, family);
				else t.not(answer.via, 'direct', `${family}: ${JSON.stringify(answer)}`);
			}
		},
	);

for (const backend of backends)
	test.serial(`escape › others exempt packets from connection tracking: ${backend}`, async t => {
		if (skippedWithout(t, toolsOf(backend))) return;
		const {world, app} = await makeScene(t, backend);
		await world.vm.must(
			'nft',
			['-f', '-'],
			'table inet other { chain out { type filter hook output priority -300; notrack; }\n}\n',
		);
		for (const family of families) {
			const answer = await app.ask(address.far[family], 80, {withinMs: 1500});
			t.not(answer.via, 'direct', `${family}: ${JSON.stringify(answer)}`);
		}
	});
