import test, {type ExecutionContext} from 'ava';
import pino from 'pino';
import type {AdsStream} from '../../../src/control-plane/index.ts';
import {AgentError} from '../../../src/errors.ts';
import {Metrics} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {typeUrl} from '../../../src/proto/types.ts';
import {Upstream, type UpstreamDeps} from '../../../src/relay/upstream.ts';
import {FakeUpstream, FakeUpstreamStream, settle, until} from '../../support/fake-ads.ts';
import {FakeClock} from '../../support/fake-clock.ts';

function makeUpstream(
	t: ExecutionContext,
	openAdsStream: UpstreamDeps['openAdsStream'],
	deps: Partial<UpstreamDeps> = {},
): Upstream {
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
		...deps,
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

test('upstream › the end of a good connection is no warning, a control plane that then is not there is one', async t => {
	const control = new FakeUpstream();
	const clock = new FakeClock();
	const told: string[] = [];
	const log = pino(
		{level: 'info'},
		{write: line => void told.push(`${levels[JSON.parse(line).level]} ${JSON.parse(line).msg}`)},
	);
	const upstream = makeUpstream(t, control.open, {clock, log});
	const gone = new AgentError('control_plane.unreachable', 'gone');
	for (const number of [1, 2]) {
		const stream = await control.stream(number);
		stream.send(typeUrl.cluster, []);
		await until('the connection', () => upstream.status().state === 'connected');
		stream.fail(gone);
		await until('the wait', () => upstream.status().state === 'waiting');
		t.is(upstream.status().lastError?.code, 'control_plane.unreachable');
		if (number === 1) await clock.advance(1000);
	}
	control.refuse = () => gone;
	for (let failures = 0; failures < 3; failures++) {
		const {attempts} = upstream.status();
		await clock.advance(60_000);
		await until('a failure', () => upstream.status().attempts > attempts);
	}
	const connected = [
		'info connected to the control plane',
		'info connection to the control plane ended, connecting again',
	];
	t.deepEqual(told, [...connected, ...connected, 'warn control plane connection failed']);
});

const levels: Readonly<Record<number, string>> = pino.levels.labels;

test('upstream › after an outage a connection that is cut short is made again before istiod takes the entry away', async t => {
	const control = new FakeUpstream();
	const clock = new FakeClock();
	const gone = new AgentError('control_plane.unreachable', 'gone');
	// The longest of all waits.
	const upstream = makeUpstream(t, control.open, {clock, random: () => 1});
	control.refuse = () => gone;
	for (let failures = 0; failures < 8; failures++) {
		await until('the failure', () => upstream.status().attempts > failures && upstream.status().state === 'waiting');
		await clock.advance(60_000);
	}
	control.refuse = undefined;
	// Not further: a stream that stays silent for long is given up.
	while (control.streams.length === 0) await clock.advance(1000);
	for (const number of [1, 2, 3]) {
		const stream = await control.stream(number);
		stream.send(typeUrl.cluster, []);
		await until('the connection', () => upstream.status().state === 'connected');
		await clock.advance(10_000);
		stream.fail(gone);
		await until('the wait', () => upstream.status().state === 'waiting');
		t.true(upstream.status().nextAttemptAt!.getTime() - clock.now().getTime() <= 4000, `after stream ${number}`);
		while (control.streams.length === number) await clock.advance(1000);
	}
});
