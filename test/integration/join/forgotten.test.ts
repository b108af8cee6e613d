import test from 'ava';
import {ask} from '../../support/load.ts';
import {partsOf, startMesh, until} from '../../support/mesh.ts';

test('join › a VM that istiod forgets to tell of its own services asks again, and is reached', async t => {
	// Longer than a busy machine takes from one stream to the next: an entry that is made anew is forgotten anew.
	const mesh = await startMesh(t, {sandbox: {gracePeriodMs: 3000}, flags: ['--control-plane-backoff-base', '50ms']});
	const {sandbox} = mesh;
	const vm = mesh.workload('vm');
	const {pid} = partsOf(await mesh.workload('cluster').status()).proxy;
	await vm.stop();
	await until('the entry to be gone', () => sandbox.workloadEntries().length === 1);
	sandbox.faults.forgetInbound(true);
	const opened = sandbox.counts.streamsOpened;
	vm.start();
	await vm.untilReady();
	await until('traffic to the VM', () => ask({port: mesh.port('cluster', 'vm')}));
	t.is(sandbox.counts.streamsOpened - opened, 2, 'one more stream is enough');
	t.regex(vm.log(), /opening a new stream.* missing=/);
	t.is(partsOf(await mesh.workload('cluster').status()).proxy.pid, pid);
});
