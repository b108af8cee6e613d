import test, {type ExecutionContext} from 'ava';
import type {AdsStream} from '../../../src/control-plane/index.ts';
import {Metrics} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {typeUrl} from '../../../src/proto/types.ts';
import {Upstream, type UpstreamDeps} from '../../../src/relay/upstream.ts';
import {FakeUpstream, FakeUpstreamStream, settle, until} from '../../support/fake-ads.ts';
import {FakeClock} from '../../support/fake-clock.ts';

function makeUpstream(t: ExecutionContext, openAdsStream: UpstreamDeps['openAdsStream']): Upstream {
	const upstream = new Upstream({
		openAdsStream,
		protocol: 'delta',
		node: () => Buffer.alloc(0),
		backoff: {baseMs: 1000, maxMs: 60_000},
		onResponse: () => {},
		onState: () => {},
		clock: new FakeClock(),
		random: () => 0.5,
		log: silentLogger,
		metrics: new Metrics(),
	});
	t.teardown(() => upstream.stop());
	upstream.subscribe(typeUrl.cluster);
	upstream.setWanted(true);
	return upstream;
}

test('upstream › a stream that comes up after we have left is closed unused, since it would register us again', async t => {
	const late = new FakeUpstreamStream('delta', 'late');
	let open = (_stream: AdsStream) => {};
	const upstream = makeUpstream(t, () => new Promise(resolve => (open = resolve)));
	await until('the attempt', () => upstream.status().state === 'connecting');
	upstream.setWanted(false);
	open(late.stream);
	await until('idle', () => upstream.status().state === 'idle');
	t.deepEqual(late.requests, []);
	t.true(late.stream.call.destroyed);
	t.is(upstream.status().lastError, undefined, 'and that is no failure');
});

test('upstream › leaving while it waits for the next attempt makes none', async t => {
	const control = new FakeUpstream();
	const upstream = makeUpstream(t, control.open);
	const stream = await control.stream(1);
	stream.stream.call.destroy(new Error('gone'));
	await until('the wait', () => upstream.status().state === 'waiting');
	upstream.setWanted(false);
	await until('idle', () => upstream.status().state === 'idle');
	await settle();
	t.is(control.streams.length, 1);
});

test('upstream › what closing a stream makes it say is not taken for another failure', async t => {
	const control = new FakeUpstream();
	const explained: unknown[] = [];
	const upstream = makeUpstream(t, async protocol => {
		const stream = await control.open(protocol);
		const explain: AdsStream['explain'] = (error, hasAnswered) => {
			explained.push(error);
			return stream.explain(error, hasAnswered);
		};
		return {...stream, explain};
	});
	const {stream} = await control.stream(1);
	stream.call.destroy(new Error('gone'));
	await until('the wait', () => upstream.status().state === 'waiting');
	// grpc-js does so when a call is cancelled; without a listener the process would end.
	t.true(stream.call.emit('error', new Error('cancelled')));
	t.is(explained.length, 1);
});
