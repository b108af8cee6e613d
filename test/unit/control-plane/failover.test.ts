import {once} from 'node:events';
import {createServer, type Socket} from 'node:net';
import {networkInterfaces} from 'node:os';
import test, {type ExecutionContext} from 'ava';
import type {Endpoint} from '../../../src/config/types.ts';
import {buildNode, type ControlPlaneDeps, encodeNode} from '../../../src/control-plane/index.ts';
import {Metrics} from '../../../src/lifecycle/index.ts';
import {Secret, silentLogger} from '../../../src/log.ts';
import {typeUrl} from '../../../src/proto/types.ts';
import {Upstream, type UpstreamStatus} from '../../../src/relay/upstream.ts';
import {type Sandbox, startSandbox} from '../../../src/sandbox/index.ts';
import {until} from '../../support/fake-ads.ts';
import {FakeClock} from '../../support/fake-clock.ts';
import {at, makeControlPlane, workload} from './world.ts';

/** Two control planes of one mesh, and an agent's side that has both addresses, the first preferred. */
async function setUp(t: ExecutionContext) {
	const [first, second] = [await startSandbox(), await startSandbox()];
	t.teardown(() => Promise.all([first.stop(), second.stop()]));
	const {clock, start} = await setUpFor(t, [at(first.port), at(second.port)], [first, second]);
	const isAt = (status: UpstreamStatus, state: string, {port}: {port: number}) =>
		status.state === state && status.endpoint === `127.0.0.1:${port}`;
	return {first, second, clock, start, isAt};
}

/** An agent's side that trusts all of them, and whose token is the last one's. */
async function setUpFor(
	t: ExecutionContext,
	endpoints: readonly Endpoint[],
	controlPlanes: readonly Sandbox[],
	deps: Partial<ControlPlaneDeps> = {},
) {
	const controlPlane = await makeControlPlane(t, {
		endpoints,
		rootPem: controlPlanes.map(each => each.rootPem()).join(''),
		token: controlPlanes.at(-1)!.issueToken({namespace: 'bar', serviceAccount: 'vm'}),
		deps,
	});
	const clock = new FakeClock();
	const start = () => {
		const upstream = new Upstream({
			random: () => 0.5,
			log: silentLogger,
			metrics: new Metrics(),
			clock,
			protocol: 'delta',
			openAdsStream: controlPlane.openAdsStream,
			backoff: {baseMs: 10, maxMs: 10},
			node: () => encodeNode(buildNode(workload, {readinessPort: 15021, metricsPort: 15090}), '0'),
			onResponse: () => {},
			onState: () => {},
		});
		t.teardown(() => upstream.stop());
		upstream.subscribe(typeUrl.cluster);
		upstream.setWanted(true);
		return upstream;
	};
	return {clock, start};
}

test('control plane › one that refuses the stream is passed over for the next', async t => {
	const {first, second, clock, start, isAt} = await setUp(t);
	first.faults.refuse({ads: {code: 'unavailable', message: 'no healthy upstream'}});
	const upstream = start();
	await until('the refusal', () => upstream.status().attempts === 1);
	await clock.advance(10);
	await until('the second', () => isAt(upstream.status(), 'connected', second));
	t.is(first.counts.streamsOpened, 1);
});

test('control plane › one that takes the stream and says nothing is passed over for the next', async t => {
	const {first, second, clock, start, isAt} = await setUp(t);
	first.faults.stopAnswering();
	const upstream = start();
	await until('the silent stream', () => isAt(upstream.status(), 'subscribing', first));
	await clock.advance(30_000);
	await until('the end of patience', () => upstream.status().attempts === 1);
	await clock.advance(10);
	await until('the second', () => isAt(upstream.status(), 'connected', second));
	t.is(upstream.status().lastError, undefined);
});

test('control plane › after a stream that worked the preferred one is asked first again', async t => {
	const {first, second, clock, start, isAt} = await setUp(t);
	first.faults.refuse({ads: {code: 'unavailable', message: 'no healthy upstream'}});
	const upstream = start();
	await until('the refusal', () => upstream.status().attempts === 1);
	await clock.advance(10);
	await until('the second', () => isAt(upstream.status(), 'connected', second));
	first.faults.refuse({ads: undefined});
	const {streamsOpened} = first.counts;
	second.faults.closeConnections();
	await until('the end', () => upstream.status().state === 'waiting');
	await clock.advance(10);
	// It does not know the second's token; that it is asked is what counts.
	await until('the first', () => first.counts.streamsOpened > streamsOpened);
	t.pass();
});

test('control plane › a name that moves to another address is followed when the stream ends', async t => {
	const first = await startSandbox({host: '127.0.0.1'});
	const second = await startSandbox({host: '127.0.0.2', port: first.port});
	t.teardown(() => Promise.all([first.stop(), second.stop()]));
	let current = first;
	const {clock, start} = await setUpFor(t, [at(first.port, 'istiod.istio-system.svc')], [first, second], {
		lookup: async () => [current.address.split(':')[0]!],
		token: {
			read: async () => {
				const token = new Secret(current.issueToken({namespace: 'bar', serviceAccount: 'vm'}));
				return {token, audiences: ['istio-ca'], problems: []};
			},
			mark: async () => current.address,
		},
	});
	const upstream = start();
	await until('the first', () => upstream.status().state === 'connected');
	t.deepEqual([first.connections().length, second.connections().length], [1, 0]);
	current = second;
	first.faults.closeConnections();
	await until('the end', () => upstream.status().state === 'waiting');
	await clock.advance(10);
	await until('the second', () => upstream.status().state === 'connected');
	t.deepEqual([first.connections().length, second.connections().length], [0, 1]);
});

const hasV6 = Object.values(networkInterfaces()).some(each => each!.some(({address}) => address === '::1'));

for (const [dead, alive] of [
	['127.0.0.1', '::1'],
	['::1', '127.0.0.1'],
] as const) {
	test(`control plane › a name with both families, of which ${dead} is dead, is reached at ${alive}`, async t => {
		if (!hasV6) {
			t.log('skipped: this machine has no ::1');
			return t.pass();
		}
		const sandbox = await startSandbox({host: alive});
		t.teardown(() => sandbox.stop());
		const {start} = await setUpFor(t, [at(sandbox.port, 'istiod.istio-system.svc')], [sandbox], {
			lookup: async () => [dead, alive],
		});
		const upstream = start();
		await until('it', () => upstream.status().state === 'connected');
		t.is(upstream.status().attempts, 0, 'at the first try');
	});
}

test('control plane › a family that takes connections and never speaks costs a second, not the whole time-out', async t => {
	if (!hasV6) return t.pass();
	const sandbox = await startSandbox({host: '127.0.0.1'});
	t.teardown(() => sandbox.stop());
	const held = new Set<Socket>();
	const silent = createServer(socket => held.add(socket.resume())).listen(sandbox.port, '::1');
	t.teardown(() => {
		for (const socket of held) socket.destroy();
		silent.close();
	});
	await once(silent, 'listening');
	const {start} = await setUpFor(t, [at(sandbox.port, 'istiod.istio-system.svc')], [sandbox], {
		lookup: async () => ['::1', '127.0.0.1'],
	});
	const upstream = start();
	const startedMs = performance.now();
	await until('it', () => upstream.status().state === 'connected');
	t.is(upstream.status().attempts, 0, 'at the first try');
	t.true(performance.now() - startedMs < 4000);
	await until('the other given up', () => [...held].every(socket => socket.destroyed));
	t.is(held.size, 1);
});
