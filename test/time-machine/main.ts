import {parseArgs} from 'node:util';
import {live, renderLife} from './life.ts';
import {findCompiler} from './shifted-clock.ts';

/** `scripts/time-machine --help`. */
const usage = `A mesh lives for days within minutes: see test/time-machine/README.md.
  --seed N    what happens when; 1
  --days N    how long; 30
  --hours N   between two events, on average; 4
  --seeds N   so many lives, with this seed and those that follow; 1
  --verbose   tell what happens`;

const {values} = parseArgs({
	options: {
		seed: {type: 'string', default: '1'},
		days: {type: 'string', default: '30'},
		hours: {type: 'string', default: '4'},
		seeds: {type: 'string', default: '1'},
		verbose: {type: 'boolean', default: false},
		help: {type: 'boolean', default: false},
	},
});
if (values.help) {
	console.log(usage);
	process.exit(0);
}
const compiler = findCompiler();
if (!compiler) {
	console.error('time machine: no C compiler: install cc or tcc');
	process.exit(2);
}
let failed = 0;
for (let n = 0; n < Number(values.seeds); n++) {
	const seed = Number(values.seed) + n;
	const tell = values.verbose ? console.log : () => {};
	const life = await live({seed, days: Number(values.days), hoursBetween: Number(values.hours), compiler, tell});
	console.log(renderLife(life));
	if (life.problems.length > 0) failed++;
}
process.exit(failed === 0 ? 0 : 1);
