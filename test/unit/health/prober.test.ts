import test from 'ava';
import type {ProbeConfig} from '../../../src/config/index.ts';
import type {CheckResult} from '../../../src/health/check.ts';
import {startProber} from '../../../src/health/prober.ts';
import {FakeClock} from '../../support/fake-clock.ts';

const probe: ProbeConfig = {
	name: 'web',
	check: {kind: 'tcp', host: undefined, port: 80},
	initialDelayMs: 5000,
	periodMs: 10_000,
	timeoutMs: 1000,
	successThreshold: 1,
	failureThreshold: 2,
};
const done = Promise.resolve();

function setUp(check: (number: number, clock: FakeClock, signal: AbortSignal) => Promise<CheckResult>) {
	const clock = new FakeClock();
	const asked: number[] = [];
	const results: (string | undefined)[] = [];
	const prober = startProber({
		probe,
		host: () => '10.0.0.5',
		clock,
		onResult: outcome => results.push(outcome),
		run: (_, __, ___, ____, signal) => check(asked.push(clock.monotonicMs() / 1000), clock, signal),
	});
	return {clock, prober, asked, results};
}

test('prober › asks first after the initial delay, then each period, and counts', async t => {
	const {clock, prober, asked, results} = setUp(async number => ({
		outcome: number < 3 ? undefined : 'no',
		ended: done,
	}));
	t.like(prober.status(), {check: 'tcp 10.0.0.5:80', verdict: 'unknown', streak: 0, lastAt: undefined});
	await clock.advance(25_000);
	t.deepEqual(
		[asked, results],
		[
			[5, 15, 25],
			[undefined, undefined, 'no'],
		],
	);
	t.like(prober.status(), {verdict: 'healthy', streak: 1, failure: 'no', lastAt: new Date('2030-01-01T00:00:25Z')});
	await clock.advance(10_000);
	t.like(prober.status(), {verdict: 'unhealthy', streak: 2});
	await prober.stop();
	await clock.advance(100_000);
	t.is(asked.length, 4);
});

test('prober › an answer that takes longer than the period is followed by the next question, never joined by it', async t => {
	const {clock, prober, asked} = setUp(async (_, fake, signal) => {
		await fake.sleep(12_000, signal);
		return {outcome: undefined, ended: done};
	});
	await clock.advance(45_000);
	t.deepEqual(asked, [5, 17, 29, 41]);
	await prober.stop();
});

test('prober › what cannot be ended is not begun again, and counts as failed', async t => {
	let end = () => {};
	const stuck = new Promise<void>(resolve => {
		end = resolve;
	});
	const {clock, prober, asked, results} = setUp(async () => ({outcome: 'no answer', ended: stuck}));
	await clock.advance(25_000);
	t.deepEqual(
		[asked, results],
		[[5], ['no answer', 'the one before has not ended yet', 'the one before has not ended yet']],
	);
	end();
	await clock.advance(10_000);
	t.deepEqual(asked, [5, 35]);
	await prober.stop();
});
