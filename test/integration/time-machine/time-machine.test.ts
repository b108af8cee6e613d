import test from 'ava';
import {isLong} from '../../support/mesh.ts';
import {live, renderLife} from '../../time-machine/life.ts';
import {findCompiler} from '../../time-machine/shifted-clock.ts';

const days = isLong ? 30 : 1.5;
const seed = 7;
/** Events follow each other closely, so that the short life has each of them once. */
const hoursBetween = isLong ? 4 : 1;

test.serial(`time machine › ${days} days pass, and no request fails without a stated cause: seed ${seed}`, async t => {
	t.timeout(isLong ? 3_600_000 : 300_000);
	const compiler = findCompiler();
	if (!compiler) {
		t.log('skipped: no C compiler (cc or tcc) to build what moves the clocks with');
		t.pass();
		return;
	}
	const life = await live({seed, days, hoursBetween, compiler});
	t.log(renderLife(life));
	t.deepEqual(life.problems, []);
	t.is(life.rootRotations, isLong ? 2 : 1);
	t.true(life.renewals >= 4);
	t.true(life.trials.size >= 10, [...life.trials.keys()].join(', '));
	t.true(life.requests > 200);
});
