import test from 'ava';
import {ask} from '../../support/load.ts';
import {partsOf, startMesh} from '../../support/mesh.ts';

const starts = 5;

test('join › an Envoy that starts while clusters change becomes ready, with all endpoints', async t => {
	const mesh = await startMesh(t, {sandbox: {debounceMs: 2}});
	const {sandbox} = mesh;
	const vm = mesh.workload('vm');
	for (let i = 0; i < starts; i++) {
		await vm.stop();
		// Each is a push of all clusters with new content, as registrations elsewhere in the mesh cause them.
		const changes = setInterval(() => sandbox.touchServices(100), 10);
		try {
			vm.start();
			await vm.untilReady(20_000);
		} finally {
			clearInterval(changes);
		}
		await ask({port: mesh.port('vm', 'cluster')});
		t.deepEqual(partsOf(await vm.status()).relay.rejections, []);
	}
});
