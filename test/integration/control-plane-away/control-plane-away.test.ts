import test, {type ExecutionContext} from 'ava';
import {freePorts} from '../../../src/sandbox/local-workload.ts';
import {ask} from '../../support/load.ts';
import {assertNoneFailed, startLoads} from '../../support/loads.ts';
import {
	gateOf,
	isConnected,
	isLong,
	type Mesh,
	type MeshOptions,
	partsOf,
	startMesh,
	startTimeOf,
	until,
} from '../../support/mesh.ts';

const names = ['vm', 'cluster'] as const;
const awayMs = isLong ? 600_000 : 12_000;
/** Reconnects within a moment in ordinary runs; the long one takes the defaults. */
const quick = isLong ? [] : ['--control-plane-backoff-max', '1s'];

/** Traffic from before until after; the same Envoys, registered again at the end. */
async function goesOn(t: ExecutionContext, options: MeshOptions, act: (mesh: Mesh) => Promise<void>): Promise<void> {
	t.timeout(awayMs + 180_000);
	const mesh = await startMesh(t, {...options, flags: [...quick, ...(options.flags ?? [])]});
	const envoys = await Promise.all(names.map(async name => partsOf(await mesh.workload(name).status()).proxy.pid));
	const startTimes = envoys.map(startTimeOf);
	const loads = startLoads(t, mesh, 15);
	await act(mesh);
	for (const name of names) {
		await mesh.workload(name).until('connected again', report => report.ready && isConnected(report), 90_000);
		const address = mesh.inbound(name).address;
		const entry = mesh.sandbox.workloadEntries().find(({spec}) => spec.address === address);
		t.truthy(entry, `the WorkloadEntry of ${name}`);
		t.is(entry?.annotations['istio.io/disconnectedAt'], undefined);
	}
	// A push gets through to both Envoys, and they like it.
	const sinceMs = performance.now();
	mesh.sandbox.touchServices(1);
	await mesh.sandbox.waitForAck('type.googleapis.com/envoy.config.cluster.v3.Cluster', {sinceMs});
	await loads.untilMore(10);
	assertNoneFailed(t, await loads.stop());
	for (const [i, name] of names.entries()) {
		const {pid, restarts, state} = partsOf(await mesh.workload(name).status()).proxy;
		t.deepEqual({pid, restarts, state}, {pid: envoys[i]!, restarts: 0, state: 'running'});
		t.is(startTimeOf(pid), startTimes[i]!);
	}
	t.deepEqual(
		mesh.sandbox.acks.all.filter(({error}) => error),
		[],
	);
}

const untilAway = async (mesh: Mesh) => {
	for (const name of names) {
		const report = await mesh.workload(name).until('away', seen => partsOf(seen).registration.state === 'away');
		// What Envoy has is good, and so is the certificate: nothing to take the VM out of service for.
		if (!report.ready) throw new Error(`${name} is not ready: ${JSON.stringify(report.gates)}`);
	}
};

test.serial(`control plane › is away for ${awayMs / 1000} s and comes back`, t =>
	goesOn(t, {}, async mesh => {
		await mesh.sandbox.faults.stop();
		await untilAway(mesh);
		const isUnreachable = ({lastError}: {readonly lastError?: {readonly code: string}}) =>
			lastError?.code === 'control_plane.unreachable';
		await mesh.workload('vm').until('the reason', report => isUnreachable(partsOf(report).relay.upstream));
		await new Promise(resolve => setTimeout(resolve, awayMs));
		await mesh.sandbox.faults.restart();
	}),
);

test.serial('control plane › comes back at the second of its addresses', async t => {
	const [second] = await freePorts(1);
	await goesOn(
		t,
		{
			flagsOf: (_name, {sandbox}) => ['--control-plane', `127.0.0.1:${sandbox.port},127.0.0.1:${second}`],
		},
		async mesh => {
			await mesh.sandbox.faults.stop();
			await untilAway(mesh);
			await mesh.sandbox.faults.restart({port: second!});
			const report = await mesh.workload('vm').until('connected', isConnected);
			t.is(partsOf(report).relay.upstream.endpoint, `127.0.0.1:${second}`);
			t.true(gateOf(report, 'registration').open);
			await mesh.workload('vm').command('rotate');
			await mesh.workload('cluster').command('rotate');
		},
	);
});

test.serial('control plane › comes back with another CA that is in the trust bundle', t =>
	goesOn(t, {sandbox: {isMultiRoot: true}, flags: ['--relay-proxy-config', 'true']}, async mesh => {
		const {sandbox} = mesh;
		await sandbox.faults.rotateRoot();
		for (const name of names)
			await mesh.workload(name).until('both roots', report => partsOf(report).identity.rootCount === 2);
		await sandbox.faults.stop();
		await untilAway(mesh);
		// Its own certificate is of the new root from here on; the bundle on the VM's disk has only the old one.
		await sandbox.faults.restart();
		for (const name of names) {
			await mesh.workload(name).until('connected', isConnected);
			await mesh.workload(name).command('rotate');
		}
		t.is(sandbox.counts.refusedHandshakes, 0);
	}),
);

test.serial('control plane › takes connections and says nothing: status, traffic and rotation later do not hang', t =>
	goesOn(t, {}, async mesh => {
		const {sandbox} = mesh;
		const vm = mesh.workload('vm');
		sandbox.faults.stopAnswering();
		sandbox.faults.closeConnections();
		await vm.until('a silent stream', report => partsOf(report).relay.upstream.state === 'subscribing');
		const rotation = vm.command('rotate');
		rotation.catch(() => {}); // looked at below
		for (let i = 0; i < 20; i++) {
			const startedMs = performance.now();
			t.true((await vm.status()).ready);
			const tookMs = performance.now() - startedMs;
			t.true(tookMs < 1000, `status took ${tookMs} ms`);
			await ask({port: mesh.port('vm', 'cluster')});
		}
		sandbox.faults.resume();
		await rotation;
	}),
);

test.serial('control plane › refuses the stream for a while with Unavailable', t =>
	goesOn(t, {}, async mesh => {
		const {sandbox} = mesh;
		sandbox.faults.refuse({ads: {code: 'unavailable', message: 'no healthy upstream'}});
		sandbox.faults.closeConnections();
		const vm = mesh.workload('vm');
		const opened = sandbox.counts.streamsOpened;
		await until('several tries', () => sandbox.counts.streamsOpened >= opened + 8);
		const report = await vm.status();
		t.true(report.ready);
		t.is(partsOf(report).registration.state, 'away');
		t.regex(JSON.stringify(partsOf(report).relay.upstream.lastError), /no healthy upstream/);
		sandbox.faults.refuse({ads: undefined});
	}),
);
