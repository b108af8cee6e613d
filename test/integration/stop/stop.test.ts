import test, {type ExecutionContext} from 'ava';
import {type Load, startLoad} from '../../support/load.ts';
import {assertNoneFailed, startLoads} from '../../support/loads.ts';
import {type Mesh, partsOf, startMesh, startTimeOf, until} from '../../support/mesh.ts';

/** istiod's grace period and the agent's wait, each a tenth of its default. */
const gracePeriodMs = 1000;
const drain = '1500ms';

/** What the cluster's side asks of the service, over whichever of its endpoints. */
function startCalls(t: ExecutionContext, mesh: Mesh): Record<string, Load> {
	const [http, tcp] = [mesh.port('cluster', 'vm'), mesh.port('cluster', 'vm', 'tcp')];
	const calls = {
		'http, new connections': startLoad({port: http, perSecond: 40}),
		'http, kept connections': startLoad({port: http, perSecond: 40, connections: 'kept'}),
		'http, slow answers': startLoad({port: http, perSecond: 20, path: '/slow'}),
		// Each is a TLS handshake of its own, and nothing of Envoy's repeats one that fails.
		'tcp, new connections': startLoad({port: tcp, perSecond: 40}),
	};
	t.teardown(() => Promise.all(Object.values(calls).map(load => load.stop())));
	return calls;
}

async function untilMore(calls: Record<string, Load>, count: number): Promise<void> {
	const before = new Map(Object.entries(calls).map(([name, load]) => [name, load.result().sent]));
	await until('more requests', () =>
		Object.entries(calls).every(([name, load]) => load.result().sent >= before.get(name)! + count),
	);
}

async function resultsOf(calls: Record<string, Load>) {
	const results = Object.entries(calls).map(async ([name, load]) => [name, await load.stop()] as const);
	return Object.fromEntries(await Promise.all(results));
}

test.serial('stop › one of two VMs is stopped in order, and none who calls their service notices', async t => {
	const mesh = await startMesh(t, {
		workloads: {cluster: 'cluster', vm: 'vm', other: 'vm'},
		sandbox: {gracePeriodMs},
		flags: ['--proxy-termination-drain', drain],
	});
	const calls = startCalls(t, mesh);
	await untilMore(calls, 40);
	const entries = () => mesh.sandbox.workloadEntries().map(({spec}) => spec.address);
	const {address} = mesh.inbound('vm');
	t.true(entries().includes(address));

	t.is(await mesh.workload('vm').stop(), 0);
	t.false(entries().includes(address), 'it has left before Envoy ended');
	await untilMore(calls, 40);
	assertNoneFailed(t, await resultsOf(calls));
});

test.serial('stop › a VM whose agent is killed again and again goes on serving and calling', async t => {
	const mesh = await startMesh(t);
	const vm = mesh.workload('vm');
	const {pid} = partsOf(await vm.status()).proxy;
	const startTime = startTimeOf(pid);
	const loads = startLoads(t, mesh);
	for (let i = 0; i < 5; i++) {
		await loads.untilMore(5);
		vm.signal('SIGKILL');
		t.is(await vm.exit, null);
		// While nobody is there, too.
		await loads.untilMore(5);
		vm.start();
		// Each time a little further: before the status is there, before Envoy is found, before and after it is ready.
		if (i % 2 === 0) await until('a status', () => vm.status());
		else await vm.untilReady();
	}
	const {proxy} = partsOf(await vm.untilReady());
	t.deepEqual({pid: proxy.pid, adopted: proxy.adopted, restarts: proxy.restarts}, {pid, adopted: true, restarts: 0});
	t.is(startTimeOf(pid), startTime);
	await loads.untilMore(20);
	assertNoneFailed(t, await loads.stop());
});
