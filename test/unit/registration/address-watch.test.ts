import test from 'ava';
import {silentLogger} from '../../../src/log.ts';
import {startAddressWatch} from '../../../src/registration/index.ts';
import {FakeClock} from '../../support/fake-clock.ts';

function setUp() {
	const clock = new FakeClock();
	let current: readonly string[] = ['10.0.0.5'];
	let now: readonly string[] = current;
	const changes: string[] = [];
	const watch = startAddressWatch({
		look: () => now,
		current: () => current,
		onChange: async addresses => {
			changes.push(addresses.join());
			current = addresses;
		},
		clock,
		log: silentLogger,
	});
	return {
		clock,
		watch,
		changes,
		become: (...addresses: string[]) => {
			now = addresses;
		},
	};
}

test('address › another one is told once, when two looks agree', async t => {
	const {clock, watch, changes, become} = setUp();
	await clock.advance(60_000);
	become('10.0.0.9', '10.0.0.5');
	await clock.advance(2000);
	t.deepEqual(changes, []);
	await clock.advance(2000);
	t.deepEqual(changes, ['10.0.0.9,10.0.0.5']);
	await clock.advance(60_000);
	t.is(changes.length, 1);
	become('10.0.0.5');
	await clock.advance(4000);
	t.is(changes.length, 2);
	await watch.stop();
});

test('address › one that is gone for a moment, or for good without another, changes nothing', async t => {
	const {clock, watch, changes, become} = setUp();
	become('10.0.0.9');
	await clock.advance(2000);
	become('10.0.0.5');
	await clock.advance(2000);
	become('127.0.0.1');
	await clock.advance(60_000);
	become('10.0.0.5', '10.0.0.9');
	await clock.advance(60_000);
	t.deepEqual(changes, []);
	await watch.stop();
});
