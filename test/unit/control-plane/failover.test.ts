import test, {type ExecutionContext} from 'ava';
import {buildNode, encodeNode} from '../../../src/control-plane/index.ts';
import {Metrics} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {typeUrl} from '../../../src/proto/types.ts';
import {Upstream, type UpstreamStatus} from '../../../src/relay/upstream.ts';
import {startSandbox} from '../../../src/sandbox/index.ts';
import {until} from '../../support/fake-ads.ts';
import {FakeClock} from '../../support/fake-clock.ts';
import {at, makeControlPlane, workload} from './world.ts';

/** Two control planes of one mesh, and an agent's side that has both addresses, the first preferred. */
async function setUp(t: ExecutionContext) {
	const [first, second] = [await startSandbox(), await startSandbox()];
	t.teardown(() => Promise.all([first.stop(), second.stop()]));
	const controlPlane = await makeControlPlane(t, {
		endpoints: [at(first.port), at(second.port)],
		rootPem: first.rootPem() + second.rootPem(),
		token: second.issueToken({namespace: 'bar', serviceAccount: 'vm'}),
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
	const isAt = (status: UpstreamStatus, state: string, {port}: {port: number}) =>
		status.state === state && status.endpoint === `127.0.0.1:${port}`;
	return {first, second, clock, start, isAt};
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
