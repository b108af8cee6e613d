import test from 'ava';
import {address, backends, makeWorld, meshUid, primeTables, skippedWithout, toolsOf} from '../../support/netns.ts';

const families = ['ip', 'ip6'] as const;

for (const backend of backends)
	test.serial(
		`tproxy › the application sees the address of the caller, over IPv4 and IPv6, and nothing is left after remove: ${backend}`,
		async t => {
			if (skippedWithout(t, toolsOf(backend))) return;
			const world = await makeWorld(t, {flags: ['--capture-backend', backend, '--capture-interception', 'tproxy']});
			const {vm, far} = world;
			if (backend === 'iptables-legacy') await primeTables(world);
			const before = await world.dump();
			await world.startEnvoy({isTransparent: true});
			const [app, mesh, outside, admin] = [
				await vm.peer(),
				await vm.peer(meshUid),
				await far.peer(0),
				await vm.peer(0),
			];
			for (const host of ['0.0.0.0', '::']) {
				await outside.listen(host, 80);
				await app.listen(host, 8080);
				await admin.listen(host, 22);
			}
			const applied = await world.capture(['apply']);
			t.is(applied.code, 0, applied.stderr);
			for (const family of families) {
				t.deepEqual(
					await outside.ask(address.vm[family], 8080),
					{via: 'envoy', peer: address.far[family], port: 8080} as object,
					`${family}: inbound, source kept`,
				);
				t.like(await app.ask(address.far[family], 80), {via: 'envoy'}, `${family}: outbound`);
				t.like(await mesh.ask(address.far[family], 80), {via: 'direct'}, `${family}: Envoy's user is not captured`);
				t.like(await outside.ask(address.vm[family], 22), {via: 'direct'}, `${family}: SSH is not captured`);
				t.like(await app.ask(address.vm[family], 8080), {via: 'direct'}, `${family}: the application talks to itself`);
			}
			t.regex((await world.capture(['verify'])).stdout, /as planned/);
			const rules = await world.dump();
			t.regex((await world.capture(['apply'])).stdout, /unchanged/);
			t.is(await world.dump(), rules);

			t.regex((await world.capture(['apply', '--capture-interception', 'redirect'])).stdout, /applied/);
			t.false((await world.dump()).includes('fwmark'), 'policy routing goes with the mode that needs it');

			await world.capture(['apply']);
			t.is(
				(await world.capture(['remove', '--capture-interception', 'redirect'])).code,
				0,
				'whatever the settings say today',
			);
			t.is(await world.dump(), before);
		},
	);
