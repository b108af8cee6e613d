import test from 'ava';
import {address, backends, makeWorld, meshUid, primeTables, skippedWithout, toolsOf} from '../../support/netns.ts';

const families = ['ip', 'ip6'] as const;

for (const backend of backends)
	test.serial(
		`capture › both directions go through Envoy over IPv4 and IPv6, and nothing is left after remove: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
			if (backend === 'iptables-legacy') await primeTables(world);
			const {vm, far} = world;
			const before = await world.dump();
			await world.startEnvoy();
			const [app, mesh, outside] = [await vm.peer(), await vm.peer(meshUid), await far.peer(0)];
			for (const host of ['0.0.0.0', '::']) {
				for (const port of [80, 22]) await outside.listen(host, port);
				for (const port of [8080]) await app.listen(host, port);
			}
			const admin = await vm.peer(0);
			for (const host of ['0.0.0.0', '::']) for (const port of [22, 15_008, 15_020]) await admin.listen(host, port);
			for (const family of families) t.is((await app.ask(address.far[family], 80)).via, 'direct');

			const applied = await world.capture(['apply']);
			t.is(applied.code, 0, applied.stderr);
			t.regex(applied.stdout, /capture: applied/);

			for (const family of families) {
				t.like(await app.ask(address.far[family], 80), {via: 'envoy'}, `${family} outbound`);
				t.like(await outside.ask(address.vm[family], 8080), {via: 'envoy'}, `${family} inbound`);
				t.like(await mesh.ask(address.far[family], 80), {via: 'direct'}, `${family}: Envoy's user is not captured`);
				t.like(await outside.ask(address.vm[family], 22), {via: 'direct'}, `${family}: SSH is not captured`);
				t.like(await outside.ask(address.vm[family], 15_008), {via: 'direct'}, `${family}: nor is the port of HBONE`);
				t.like(
					await outside.ask(address.vm[family], 15_020),
					{via: 'direct'},
					`${family}: the agent's own port is not captured`,
				);
				t.like(await app.ask(address.vm[family], 8080), {via: 'direct'}, `${family}: the application talks to itself`);
				t.like(
					await mesh.ask(address.vm[family], 8080),
					{via: 'envoy'},
					`${family}: Envoy calls its own machine through the mesh`,
				);
				t.like(
					await mesh.ask(address.vm[family], 8080, {from: family === 'ip' ? '127.0.0.6' : '::6'}),
					{via: 'direct'},
					`${family}: probes reach the application itself`,
				);
				await outside.listen(address.metadata[family], 81);
				t.like(
					await app.ask(address.metadata[family], 81),
					{via: 'direct'},
					`${family}: the metadata server is not captured`,
				);
			}

			t.is((await world.capture(['verify'])).stdout.split(',')[0], 'capture: as planned');
			const rules = await world.dump();
			t.regex((await world.capture(['apply'])).stdout, /capture: unchanged/);
			t.is(await world.dump(), rules, 'apply twice is apply once');

			t.is((await world.capture(['remove'])).code, 0);
			t.is(await world.dump(), before);
			t.regex((await world.capture(['remove'])).stdout, /nothing to remove/);
			for (const family of families) t.is((await app.ask(address.far[family], 80)).via, 'direct');
		},
	);

test.serial('capture › without Envoy nothing is changed, and the message says what does not answer', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const before = await world.dump();
	const {code, stderr} = await world.capture(['apply', '--capture-wait', '200ms']);
	t.is(code, 1);
	t.regex(stderr, /no answer from Envoy, outbound \(127\.0\.0\.1:15001\), Envoy, inbound/);
	t.is(await world.dump(), before);
});

test.serial('capture › without an answer to questions for names nothing is changed, either', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const before = await world.dump();
	await world.startEnvoy();
	const {code, stderr} = await world.capture(['apply', '--capture-dns', 'servers', '--capture-wait', '200ms']);
	t.is(code, 1);
	t.regex(stderr, /no answer from DNS over UDP \(127\.0\.0\.1:15053\), DNS over TCP/);
	t.notRegex(stderr, /Envoy, outbound/);
	t.is(await world.dump(), before);
});
