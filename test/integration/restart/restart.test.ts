import {rm} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import type {LocalWorkload} from '../../../src/sandbox/local-workload.ts';
import {ask} from '../../support/load.ts';
import {assertNoneFailed, startLoads} from '../../support/loads.ts';
import {gateOf, isConnected, isLong, isSaved, partsOf, startMesh, startTimeOf, until} from '../../support/mesh.ts';

/** Nothing but the certificate can speak for the VM from here on. */
const removeToken = ({options}: LocalWorkload) => rm(join(options.bundle, 'istio-token'));

test.serial(
	'restart › an agent that returns while the control plane is away takes Envoy over, and no request fails',
	async t => {
		const mesh = await startMesh(t, {flags: ['--control-plane-backoff-max', '1s']});
		const {sandbox} = mesh;
		const vm = mesh.workload('vm');
		const before = partsOf(await vm.until('saved', isSaved));
		const startTime = startTimeOf(before.proxy.pid);
		const loads = startLoads(t, mesh);
		await loads.untilMore(5);

		await sandbox.faults.stop();
		await removeToken(vm);
		vm.signal('SIGKILL');
		await vm.exit;
		await loads.untilMore(10);
		vm.start();
		const report = await vm.until('what it has', seen => {
			const {proxy, identity, relay} = partsOf(seen);
			return proxy?.state === 'running' && identity?.origin === 'disk' && relay?.upstream.lastError !== undefined;
		});
		const {identity, proxy, relay} = partsOf(report);
		t.is(identity.serial, before.identity.serial);
		t.deepEqual({state: identity.state, open: gateOf(report, 'identity').open}, {state: 'serving', open: true});
		t.deepEqual(
			{pid: proxy.pid, adopted: proxy.adopted, restarts: proxy.restarts},
			{pid: before.proxy.pid, adopted: true, restarts: 0},
		);
		t.is(startTimeOf(proxy.pid), startTime);
		t.is(relay.upstream.lastError?.code, 'control_plane.unreachable');
		// It cannot know whether it is still registered, and says so; traffic does not depend on it.
		const {ready} = await vm.untilReady();
		t.true(ready);
		await vm.until('what was taken out', seen => {
			const told = namesOf(partsOf(seen).relay.removals);
			return JSON.stringify(told) === JSON.stringify(namesOf(before.relay.removals));
		});
		t.regex(gateOf(await vm.status(), 'registration').reason ?? '', /not confirmed since .*control plane is away/);
		t.regex(gateOf(report, 'configuration').reason ?? '', /ECONNREFUSED|as saved/);
		await loads.untilMore(20);

		const byToken = sandbox.counts.issuedByToken;
		await sandbox.faults.restart();
		await vm.until('connected and ready', seen => seen.ready && isConnected(seen));
		await mesh.workload('cluster').until('connected and ready', seen => seen.ready && isConnected(seen));
		await vm.command('rotate');
		const after = partsOf(await vm.status());
		t.not(after.identity.serial, before.identity.serial);
		t.deepEqual(namesOf(after.relay.removals), namesOf(before.relay.removals), 'what was taken out is still told');
		t.is(sandbox.counts.issuedByToken, byToken);
		await loads.untilMore(10);
		assertNoneFailed(t, await loads.stop());
		t.is(partsOf(await vm.status()).proxy.pid, before.proxy.pid);
		t.deepEqual(
			sandbox.acks.all.filter(({error}) => error),
			[],
		);
	},
);

const namesOf = (removals: readonly {readonly name: string}[]) => removals.map(({name}) => name).sort();

const kills = isLong ? 50 : 5;

test.serial(
	`restart › the agent killed ${kills} times under some 200 requests a second, and none of them fails`,
	async t => {
		t.timeout(600_000);
		const mesh = await startMesh(t);
		const vm = mesh.workload('vm');
		const {pid} = partsOf(await vm.status()).proxy;
		const loads = startLoads(t, mesh, 40);
		for (let n = 0; n < kills; n++) {
			await loads.untilMore(2);
			vm.signal('SIGKILL');
			await vm.exit;
			await loads.untilMore(2);
			vm.start();
			await vm.untilReady();
		}
		assertNoneFailed(t, await loads.stop());
		t.is(partsOf(await vm.status()).proxy.pid, pid);
		t.is(mesh.sandbox.workloadEntries().filter(({name}) => name.startsWith('vm')).length, 1);
	},
);

test.serial(
	'restart › after agent and Envoy have both died, the certificate on disk is enough to be ready again',
	async t => {
		const mesh = await startMesh(t);
		const {sandbox} = mesh;
		const vm = mesh.workload('vm');
		const before = partsOf(await vm.status());
		const byToken = sandbox.counts.issuedByToken;
		await removeToken(vm);
		vm.signal('SIGKILL');
		await vm.exit;
		process.kill(before.proxy.pid, 'SIGKILL');

		vm.start();
		const startedMs = performance.now();
		const {identity, proxy, registration} = partsOf(await vm.untilReady());
		t.log(`ready after ${Math.round(performance.now() - startedMs)} ms`);
		t.is(identity.serial, before.identity.serial);
		t.not(proxy.pid, before.proxy.pid);
		t.deepEqual({adopted: proxy.adopted, state: registration.state}, {adopted: false, state: 'registered'});
		await until('requests both ways', async () => {
			const inbound = await ask({port: mesh.port('cluster', 'vm')});
			const outbound = await ask({port: mesh.port('vm', 'cluster')});
			return inbound.ownId === mesh.idOf('vm') && outbound.callerId === mesh.idOf('vm');
		});
		t.is(sandbox.counts.issuedByToken, byToken);
	},
);
