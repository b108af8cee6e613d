import test from 'ava';
import {silentLogger} from '../../../src/log.ts';
import {startAddressWatch} from '../../../src/registration/index.ts';
import {FakeClock} from '../../support/fake-clock.ts';

function setUp({isHeard = true} = {}) {
	const clock = new FakeClock();
	let current: readonly string[] = ['10.0.0.5'];
	let now: readonly string[] = current;
	let looks = 0;
	let tell = () => {};
	let isStopped = false;
	const changes: string[] = [];
	const watch = startAddressWatch({
		look: () => {
			looks++;
			return now;
		},
		current: () => current,
		onChange: async addresses => {
			changes.push(addresses.join());
			current = addresses;
		},
		clock,
		log: silentLogger,
		listen: (_commands, onChange) => {
			tell = onChange;
			return {
				isListening: () => isHeard,
				stop: () => {
					isStopped = true;
				},
			};
		},
	});
	return {
		clock,
		watch,
		changes,
		looks: () => looks,
		isStopped: () => isStopped,
		become: (...addresses: string[]) => {
			now = addresses;
			if (isHeard) tell();
		},
	};
}

test('address › another one is told once, a second after the kernel told of it, when two looks agree', async t => {
	const {clock, watch, changes, become, isStopped} = setUp();
	await clock.advance(60_000);
	become('10.0.0.9', '10.0.0.5');
	await clock.advance(500);
	t.deepEqual(changes, []);
	await clock.advance(600);
	t.deepEqual(changes, ['10.0.0.9,10.0.0.5']);
	await clock.advance(60_000);
	t.is(changes.length, 1);
	become('10.0.0.5');
	await clock.advance(1100);
	t.is(changes.length, 2);
	await watch.stop();
	t.true(isStopped());
});

test('address › where the kernel is not heard, it is looked at each two seconds', async t => {
	const {clock, watch, changes, become} = setUp({isHeard: false});
	await clock.advance(60_000);
	become('10.0.0.9', '10.0.0.5');
	await clock.advance(3000);
	t.deepEqual(changes, ['10.0.0.9,10.0.0.5']);
	await watch.stop();
});

test('address › where it is heard, hardly anything is looked at', async t => {
	const {clock, watch, looks} = setUp();
	await clock.advance(10 * 60_000);
	t.true(looks() <= 21, String(looks()));
	await watch.stop();
});

test('address › one that is gone for a moment, or for good without another, changes nothing', async t => {
	const {clock, watch, changes, become} = setUp();
	await clock.advance(10_000);
	become('10.0.0.9');
	await clock.advance(900);
	become('10.0.0.5');
	await clock.advance(2000);
	become('127.0.0.1');
	await clock.advance(60_000);
	become('10.0.0.5', '10.0.0.9');
	await clock.advance(60_000);
	t.deepEqual(changes, []);
	await watch.stop();
});
