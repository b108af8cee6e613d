import test from 'ava';
import {silentLogger} from '../../../src/log.ts';
import {limitReconnects} from '../../../src/registration/index.ts';
import {FakeClock} from '../../support/fake-clock.ts';

test('mending › opens at most six streams in five minutes, however often it is asked', async t => {
	const clock = new FakeClock();
	let opened = 0;
	const mend = limitReconnects(() => opened++, clock, silentLogger);
	for (let i = 0; i < 290; i++) {
		mend();
		await clock.advance(1000);
	}
	t.is(opened, 6);
	await clock.advance(20_000);
	for (let i = 0; i < 20; i++) mend();
	t.is(opened, 12);
});
