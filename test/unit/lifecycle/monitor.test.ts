import test from 'ava';
import {systemClock} from '../../../src/lifecycle/index.ts';
import {startMonitor} from '../../../src/lifecycle/monitor.ts';

/** Programs run as they do; only waits are skipped, and taken down. */
function waiting(most: number) {
	const waits: number[] = [];
	const end = new AbortController();
	const {promise: done, resolve} = Promise.withResolvers<void>();
	const clock: typeof systemClock = {
		...systemClock,
		sleep: async ms => {
			waits.push(ms);
			if (waits.length < most) return;
			end.abort();
			resolve();
			throw new Error('enough');
		},
	};
	return {waits, signal: end.signal, clock, done};
}

test('monitor › a listener that cannot work here is tried less and less, and says that nothing is heard', async t => {
	const {waits, signal, clock, done} = waiting(9);
	const monitor = startMonitor([['false']], () => {}, clock, signal);
	await done;
	t.deepEqual(waits, [5000, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000, 300_000]);
	t.false(monitor.isListening());
});

test('monitor › one that has worked for a while is back after seconds each time', async t => {
	const {waits, signal, clock, done} = waiting(3);
	let nowMs = 0;
	startMonitor(
		[['true']],
		() => {},
		{
			...clock,
			monotonicMs: () => {
				nowMs += 60_000;
				return nowMs;
			},
		},
		signal,
	);
	await done;
	t.deepEqual(waits, [5000, 5000, 5000]);
});
