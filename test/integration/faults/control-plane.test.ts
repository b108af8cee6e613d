import {createServer} from 'node:net';
import anyTest, {type TestFn} from 'ava';
import {partsOf} from '../../support/mesh.ts';
import {complaints, emptyState, listFiles, makeWorld, namespace, until, untilClosed, type World} from './world.ts';

const test = anyTest as TestFn<{world: World}>;

test.beforeEach(async t => {
	t.context.world = await makeWorld({isMultiRoot: true, mtls: 'strict', ports: {vm: {interception: 'none'}}});
});
test.afterEach(t => t.context.world.checkSecrets(t));
test.afterEach.always(t => t.context.world.end());

test('faults › control plane › one that takes a while for every answer: joining and rotating take as long, and go through', async t => {
	const {world} = t.context;
	const {sandbox} = world;
	const slowMs = 1000;
	sandbox.faults.slow(slowMs);
	const workload = await world.workload({bundle: await world.bundle()});
	const startedMs = performance.now();
	workload.start();
	const {parts} = await workload.untilReady();
	// Certificate and first configuration are asked for side by side, endpoints and routes after it.
	const joinedMs = performance.now() - startedMs;
	t.true(joinedMs > slowMs, `${joinedMs} ms`);
	const before = (parts['identity'] as {serial: string}).serial;
	const rotatedMs = performance.now();
	await workload.command('rotate');
	t.true(performance.now() - rotatedMs > slowMs);
	const {identity, relay} = partsOf(await workload.status());
	t.not(identity.serial, before);
	t.is(sandbox.counts.issuedByCertificate, 1);
	t.deepEqual([relay.upstream.state, relay.rejections], ['connected', []]);
	t.deepEqual(complaints(workload), []);
	t.log(`ready after ${Math.round(joinedMs)} ms`);
});

test('faults › control plane › what Envoy refuses is told in its words until it is taken back, and spoils nothing else', async t => {
	const {world} = t.context;
	const {sandbox} = world;
	const workload = await world.workload({bundle: await world.bundle()});
	workload.start();
	await workload.untilReady();

	const occupant = createServer().listen(0, '127.0.0.1');
	await new Promise(resolve => occupant.once('listening', resolve));
	t.teardown(() => occupant.close());
	const {port} = occupant.address() as {port: number};
	const service = {namespace, port: 80, targetPort: 8080, protocol: 'http' as const, selector: {app: 'vm'}};
	sandbox.addService({...service, host: 'taken.example', bindPort: {vm: port}});
	const report = await workload.until('refused', seen => partsOf(seen).relay.rejections.length > 0);
	const [rejection] = partsOf(report).relay.rejections as {type: string; message: string}[];
	t.is(rejection!.type, 'LDS');
	t.regex(
		rejection!.message,
		new RegExp(`127\\.0\\.0\\.1_${port}.*cannot bind '127\\.0\\.0\\.1:${port}': Address already in use`),
	);
	await until('the control plane to hear of it', () =>
		sandbox.acks.all.some(({error}) => error?.message.includes(`cannot bind '127.0.0.1:${port}'`) ?? false),
	);
	t.true(report.ready, 'what it had goes on');

	sandbox.removeService('taken.example');
	await workload.until('taken back', seen => partsOf(seen).relay.rejections.length === 0);
});

test('faults › control plane › a token of another namespace is refused with both named, and nothing is kept', async t => {
	const {world} = t.context;
	const workload = await world.workload({bundle: await world.bundle(), flags: ['--namespace', 'elsewhere']});
	workload.start();

	const gate = await untilClosed(workload, 'registration', /our identity is not elsewhere\/vm-sa/);
	t.regex(
		gate.reason,
		/system:serviceaccount:faults:vm-sa.*PERMISSION_DENIED.*spiffe:\/\/cluster\.local\/ns\/faults\/sa\/vm-sa/,
	);
	t.regex(gate.hint!, /istioctl x workload entry configure --name vm --namespace elsewhere .*onramp join BUNDLE/);
	const refusals = complaints(workload).filter(line => line.includes('control_plane.permission_denied'));
	t.is(refusals.length, 1, refusals.join('\n'));
	await untilClosed(
		workload,
		'identity',
		/it names \S+\/ns\/faults\/sa\/vm-sa, this workload is \S+\/ns\/elsewhere\/sa\/vm-sa/,
	);
	t.deepEqual(world.sandbox.workloadEntries(), []);
	t.deepEqual(await listFiles(workload.stateDir), emptyState);
});
