import test from 'ava';
import fc from 'fast-check';
import {rotateAt} from '../../../src/identity/schedule.ts';
import {mostWithin, seededRandom} from '../../support/seeded-random.ts';

const hour = 3_600_000;
const receivedAt = new Date('2030-01-01T00:00:00Z');
const day = {
	receivedAt,
	notBefore: new Date(receivedAt.getTime() - 120_000),
	notAfter: new Date(receivedAt.getTime() + 24 * hour),
};
const plan = {share: 0.5, jitter: 0.1, rideOutMs: 0};
const hoursIn = (at: Date) => (at.getTime() - receivedAt.getTime()) / hour;

test('schedule › half the life by default, ± a tenth', t => {
	t.is(hoursIn(rotateAt(day, plan, 0.5)), 12);
	t.is(hoursIn(rotateAt(day, plan, 0)), 9.6);
	t.true(hoursIn(rotateAt(day, plan, 0.999999)) < 14.4001);
});

test('schedule › a ride-out comes before the share', t => {
	t.is(hoursIn(rotateAt(day, {...plan, rideOutMs: 18 * hour, jitter: 0}, 0.5)), 6);
});

test('schedule › a ride-out longer than the life still uses a tenth of it, and not all at once', t => {
	const greedy = {...plan, rideOutMs: 100 * hour};
	t.is(hoursIn(rotateAt(day, greedy, 0)), 2.4);
	t.true(rotateAt(day, greedy, 0.9) > rotateAt(day, greedy, 0.1));
});

test('schedule › a receipt noted with a wrong clock is not believed', t => {
	const at = rotateAt({...day, receivedAt: new Date('1970-01-01')}, {...plan, jitter: 0}, 0.5);
	t.true(at > day.notBefore && at < day.notAfter);
	t.deepEqual(rotateAt({...day, receivedAt: new Date('2040-01-01')}, {...plan, jitter: 0}, 0.5), at);
});

test('schedule › always falls into the certificate’s life, leaving some of it', t => {
	const unit = fc.double({min: 0, max: 1, noNaN: true, maxExcluded: true});
	const life = fc.integer({min: 1000, max: 90 * 24 * hour});
	fc.assert(
		fc.property(
			unit,
			unit,
			unit,
			life,
			fc.integer({min: 0, max: 1000 * hour}),
			(share, jitter, random, lifeMs, rideOutMs) => {
				const notAfter = new Date(receivedAt.getTime() + lifeMs);
				const at = rotateAt({receivedAt, notBefore: receivedAt, notAfter}, {share, jitter, rideOutMs}, random);
				const used = (at.getTime() - receivedAt.getTime()) / lifeMs;
				return used > 0.099 && used < 0.951;
			},
		),
	);
	t.pass();
});

for (const [title, plan] of [
	['by the defaults', {share: 0.5, jitter: 0.1, rideOutMs: 0}],
	['late', {share: 0.95, jitter: 0.1, rideOutMs: 0}],
	['early', {share: 0.05, jitter: 0.1, rideOutMs: 0}],
	['with the most jitter', {share: 0.5, jitter: 0.5, rideOutMs: 0}],
	['to ride out a night', {share: 0.5, jitter: 0.1, rideOutMs: 16 * hour}],
	['to ride out more than a life', {share: 0.5, jitter: 0.1, rideOutMs: 30 * hour}],
] as const) {
	test(`schedule › 1,000 agents that joined in the same second rotate apart, ${title}: no minute has more than 2 %`, t => {
		const random = seededRandom(1);
		const times = Array.from({length: 1000}, () => rotateAt(day, plan, random()).getTime());
		const fullest = mostWithin(60_000, times);
		t.true(fullest <= 20, `${fullest} in the fullest minute`);
		t.true(mostWithin(1000, times) <= 5);
		t.log(`fullest minute: ${fullest}, over ${((Math.max(...times) - Math.min(...times)) / hour).toFixed(1)} h`);
	});
}
