import test from 'ava';
import {freePorts} from '../../../src/sandbox/local-workload.ts';

test('free ports › are all different, none of a mesh, and none that the kernel gives away', async t => {
	const ports = await freePorts(200);
	t.is(new Set(ports).size, 200);
	t.deepEqual(
		ports.filter(port => port < 15_100 || port > 32_767),
		[],
	);
});
