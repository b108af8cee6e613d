import test from 'ava';
import {address, backends, makeWorld, skippedWithout, toolsOf, type World} from '../../support/netns.ts';

const families = ['ip', 'ip6'] as const;
const holds = {ip: {out: 1, in: 2}, ip6: {out: 3, in: 4}} as const;

/** A connection each way and family, all through Envoy, which lives on. */
async function connectThrough(t: Parameters<typeof skippedWithout>[0], world: World) {
	const {vm, far} = world;
	await world.startEnvoy();
	const [app, outside] = [await vm.peer(), await far.peer(0)];
	for (const host of ['0.0.0.0', '::']) {
		await outside.listen(host, 80);
		await app.listen(host, 8080);
	}
	t.is((await world.capture(['apply'])).code, 0);
	for (const family of families) {
		t.like(await app.ask(address.far[family], 80, {hold: holds[family].out}), {via: 'envoy'});
		t.like(await outside.ask(address.vm[family], 8080, {hold: holds[family].in}), {via: 'envoy'});
	}
	return {app, outside};
}

for (const backend of backends)
	test.serial(
		`ending › who is connected through Envoy hears of it when the rules go, and no one else does: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
			const clean = await world.dump();
			const {app, outside} = await connectThrough(t, world);
			const ssh = await world.vm.peer(0);
			await ssh.listen('0.0.0.0', 22);
			t.like(await outside.ask(address.vm.ip, 22, {hold: 5}), {via: 'direct'});
			const said = (await world.capture(['remove'])).stdout;
			for (const family of families) {
				t.deepEqual(await app.awaitEnd(holds[family].out, 10_000), {error: 'ECONNRESET'}, `${family} out`);
				t.deepEqual(await outside.awaitEnd(holds[family].in, 10_000), {error: 'ECONNRESET'}, `${family} in`);
			}
			t.regex(said, /4 connections through Envoy ended with the rules/);
			t.like(await outside.askAgain(5), {via: 'direct'}, 'an SSH session goes on');
			t.like(await app.ask(address.far.ip, 80), {via: 'direct'}, 'a new one goes past Envoy');
			// Whose tables the kernel keeps once it has them.
			if (backend !== 'iptables-legacy') t.is(await world.dump(), clean);
		},
	);

test.serial('ending › also where traffic is refused from then on', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t, {flags: ['--capture-on-agent-down', 'block']});
	const clean = await world.dump();
	const {app, outside} = await connectThrough(t, world);
	t.regex((await world.capture(['remove'])).stdout, /refused[\s\S]*4 connections through Envoy ended/);
	for (const family of families) {
		t.deepEqual(await app.awaitEnd(holds[family].out, 10_000), {error: 'ECONNRESET'}, `${family} out`);
		t.deepEqual(await outside.awaitEnd(holds[family].in, 10_000), {error: 'ECONNRESET'}, `${family} in`);
		t.like(await app.ask(address.far[family], 80), {error: 'ECONNREFUSED'});
	}
	t.is((await world.capture(['remove', '--all'])).code, 0);
	t.is(await world.dump(), clean);
});

test.serial('ending › where one family is no longer captured, those of the other go on', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const {app, outside} = await connectThrough(t, world);
	const {stdout, stderr} = await world.capture(['apply', '--capture-ipv6', 'ignore']);
	t.regex(stdout + stderr, /2 connections through Envoy ended with the rules/);
	t.deepEqual(await app.awaitEnd(holds.ip6.out, 10_000), {error: 'ECONNRESET'});
	t.deepEqual(await outside.awaitEnd(holds.ip6.in, 10_000), {error: 'ECONNRESET'});
	for (const answer of [await app.askAgain(holds.ip.out), await outside.askAgain(holds.ip.in)])
		t.is(answer.error, undefined, 'over IPv4 all goes on');
});

/** What is there when somebody has died between the end of the rules and that of the connections. */
const held = families
	.map(
		family =>
			`table ${family} onramp_ending {\n\tchain hold {\n\t\ttype nat hook prerouting priority -95;\n\t\ttcp dport 0 redirect to :15001\n\t\ttcp dport 0 redirect to :15006\n\t}\n}\n`,
	)
	.join('');

test.serial('ending › what somebody began who died half way is ended by the next removal', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const clean = await world.dump();
	const {app, outside} = await connectThrough(t, world);
	const died = families.map(family => `delete table ${family} onramp\n`).join('');
	await world.vm.must('nft', ['-f', '-'], held + died);
	t.regex((await world.capture(['remove'])).stdout, /4 connections through Envoy ended/);
	for (const family of families) {
		t.deepEqual(await app.awaitEnd(holds[family].out, 10_000), {error: 'ECONNRESET'}, `${family} out`);
		t.deepEqual(await outside.awaitEnd(holds[family].in, 10_000), {error: 'ECONNRESET'}, `${family} in`);
	}
	t.is(await world.dump(), clean);
});

test.serial('ending › or the rules come back, and all goes on', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const {app, outside} = await connectThrough(t, world);
	const before = await world.dump();
	await world.vm.must('nft', ['-f', '-'], held + families.map(family => `delete table ${family} onramp\n`).join(''));
	t.is((await world.capture(['apply'])).code, 0);
	t.is(await world.dump(), before);
	for (const family of families)
		for (const answer of [await app.askAgain(holds[family].out), await outside.askAgain(holds[family].in)])
			t.is(answer.error, undefined, family);
});
