import test from 'ava';
import {isLong} from '../../support/mesh.ts';
import {live, renderLife} from '../../time-machine/life.ts';
import {findCompiler} from '../../time-machine/shifted-clock.ts';

const days = isLong ? 30 : 2;
const seed = 1;

test.serial(`time machine › ${days} days pass, and no request fails without a stated cause: seed ${seed}`, async t => {
	t.timeout(isLong ? 3_600_000 : 300_000);
	const compiler = findCompiler();
	if (!compiler) {
		t.log('skipped: no C compiler (cc or tcc) to build what moves the clocks with');
		t.pass();
		return;
	}
	const life = await live({seed, days, compiler});
	t.log(renderLife(life));
	t.deepEqual(life.problems, []);
	t.is(life.rootRotations, 2);
	t.true(life.renewals >= 4);
	t.true(life.requests > 200);
});
