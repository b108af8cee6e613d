import test from 'ava';
import {until} from '../../support/mesh.ts';
import {address, backends, makeWorld, meshUid, skippedWithout, toolsOf} from '../../support/netns.ts';

const families = ['ip', 'ip6'] as const;

/** First packets to the far side that are not Envoy's, as the wire shows them: the VM's own table cannot lie about it. */
async function watchWire(far: {must(program: string, args: readonly string[], input?: string): Promise<string>}) {
	await far.must(
		'nft',
		['-f', '-'],
		'table inet watch { chain input { type filter hook input priority -300; iifname "vm0" tcp dport { 80, 8081 } tcp flags & (syn | ack) == syn counter; }\n}\n',
	);
	return async () => Number(/packets (\d+)/.exec(await far.must('nft', ['list', 'table', 'inet', 'watch']))![1]);
}

for (const backend of backends)
	for (const policy of ['hold', 'block'] as const)
		test.serial(`policy › ${policy}: no first packet leaves the machine while Envoy is dead: ${backend}`, async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend, '--capture-on-agent-down', policy]});
			const {vm, far} = world;
			const envoy = await world.startEnvoy();
			const [app, outside, ssh] = [await vm.peer(), await far.peer(0), await vm.peer(0)];
			for (const host of ['0.0.0.0', '::']) {
				await outside.listen(host, 80);
				await app.listen(host, 8080);
				await ssh.listen(host, 22);
			}
			const count = await watchWire(far);
			t.is((await world.capture(['apply'])).code, 0);
			for (const family of families) t.like(await app.ask(address.far[family], 80), {via: 'envoy'});
			const before = await count();
			envoy.kill('SIGKILL');
			await until('Envoy to be dead', () => envoy.exitCode !== null || envoy.signalCode !== null);
			const asked = Array.from({length: 50}, (_, i) => app.ask(address.far[families[i % 2]!], 80));
			t.true((await Promise.all(asked)).every(({error}) => error === 'ECONNREFUSED'));
			t.is(await count(), before, 'first packets on the wire');
			for (const family of families) {
				t.like(await outside.ask(address.vm[family], 8080), {error: 'ECONNREFUSED'});
				t.like(await outside.ask(address.vm[family], 22), {via: 'direct'}, 'SSH');
			}
			await world.startEnvoy();
			for (const family of families) t.like(await app.ask(address.far[family], 80), {via: 'envoy'}, 'back again');
		});

test.serial(
	'policy › block: after a stop nothing that ought to be captured leaves or comes in, until it is lifted',
	async t => {
		if (skippedWithout(t)) return;
		const world = await makeWorld(t, {flags: ['--capture-on-agent-down', 'block']});
		const {vm, far} = world;
		const clean = await world.dump();
		await world.startEnvoy();
		const [app, outside, ssh, mesh] = [await vm.peer(), await far.peer(0), await vm.peer(0), await vm.peer(meshUid)];
		for (const host of ['0.0.0.0', '::']) {
			await outside.listen(host, 80);
			await app.listen(host, 8080);
			await ssh.listen(host, 22);
		}
		t.is((await world.capture(['apply'])).code, 0);
		const answers: string[] = [];
		let isGoing = true;
		const asking = (async () => {
			for (let i = 0; isGoing; i++) {
				const {via, error} = await app.ask(address.far[families[i % 2]!], 80);
				answers.push(via ?? error ?? '');
			}
		})();
		await until('answers by Envoy', () => answers.includes('envoy'));
		t.regex((await world.capture(['remove'])).stdout, /is refused \(onramp capture remove --all/);
		for (const family of families) {
			t.like(await app.ask(address.far[family], 80), {error: 'ECONNREFUSED'});
			t.like(await outside.ask(address.vm[family], 8080), {error: 'ECONNREFUSED'});
			t.like(await outside.ask(address.vm[family], 22), {via: 'direct'});
		}
		t.is((await world.capture(['apply'])).code, 0);
		const seen = answers.length;
		await until('answers by Envoy again', () => answers.slice(seen).includes('envoy'));
		isGoing = false;
		await asking;
		t.true(answers.includes('ECONNREFUSED'));
		t.false(answers.includes('direct'), 'not for a moment while the rules went and came back');
		t.regex((await world.capture(['remove'])).stdout, /is refused/);
		for (const family of families) {
			t.like(await mesh.ask(address.far[family], 80), {via: 'direct'}, 'the agent reaches its control plane');
		}
		t.is((await world.capture(['apply'])).code, 0);
		const again = await app.ask(address.far.ip, 80);
		t.is(again.via ?? again.error, 'envoy');
		t.is((await world.capture(['remove', '--all'])).code, 0);
		t.is(await world.dump(), clean);
	},
);

test.serial(
	'policy › bypass: traffic goes past a dead Envoy after a while, and through it when it is back',
	async t => {
		if (skippedWithout(t)) return;
		const world = await makeWorld(t, {flags: ['--capture-on-agent-down', 'bypass']});
		const {vm, far} = world;
		const envoy = await world.startEnvoy();
		const [app, outside] = [await vm.peer(), await far.peer(0)];
		await outside.listen('0.0.0.0', 80);
		t.is((await world.capture(['apply'])).code, 0);
		vm.spawn(world.captureCommand(['watch']), {stdio: 'ignore', stderr: () => {}});
		envoy.kill('SIGKILL');
		await until('traffic past Envoy', async () => (await app.ask(address.far.ip, 80)).via === 'direct');
		await world.startEnvoy();
		await until('traffic through Envoy', async () => (await app.ask(address.far.ip, 80)).via === 'envoy');
	},
);

test.serial(
	'policy › bypass: a watch that is killed and started anew while Envoy is dead brings capture back when it lives',
	async t => {
		if (skippedWithout(t)) return;
		const world = await makeWorld(t, {flags: ['--capture-on-agent-down', 'bypass']});
		const {vm, far} = world;
		const envoy = await world.startEnvoy();
		const [app, outside] = [await vm.peer(), await far.peer(0)];
		await outside.listen('0.0.0.0', 80);
		const watch = () => vm.spawn(world.captureCommand(['watch']), {stdio: 'ignore', stderr: () => {}});
		const isVia = async (via: string) => (await app.ask(address.far.ip, 80)).via === via;
		t.is((await world.capture(['apply'])).code, 0);
		const first = watch();
		envoy.kill('SIGKILL');
		await until('traffic past Envoy', () => isVia('direct'));
		first.kill('SIGKILL');
		t.regex((await world.capture(['status'])).stdout, /bypassed since/);
		const second = await world.startEnvoy();
		watch();
		await until('traffic through Envoy', () => isVia('envoy'));
		second.kill('SIGKILL');
		await until('traffic past Envoy again', () => isVia('direct'));
		t.is((await world.capture(['remove'])).code, 0);
		t.notRegex((await world.capture(['status'])).stdout, /bypassed since/, 'removed for good');
	},
);

for (const backend of backends)
	test.serial(
		`replace › no first packet leaves uncaptured while rules are replaced over and over: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
			const {vm, far} = world;
			await world.startEnvoy();
			const [app, outside] = [await vm.peer(), await far.peer(0)];
			for (const host of ['0.0.0.0', '::']) await outside.listen(host, 80);
			t.is((await world.capture(['apply'])).code, 0);
			let isReplacing = true;
			const answers: (string | undefined)[] = [];
			const asking = (async () => {
				for (let i = 0; isReplacing; i++) {
					const {via, error} = await app.ask(address.far[families[i % 2]!], 80);
					answers.push(via ?? error);
				}
			})();
			for (let i = 0; i < 6; i++)
				t.is((await world.capture(['apply', '--force', '--capture-inbound-exclude-ports', String(9000 + i)])).code, 0);
			isReplacing = false;
			await asking;
			t.true(answers.length > 50, `${answers.length} connections`);
			t.deepEqual([...new Set(answers)], ['envoy']);
		},
	);
