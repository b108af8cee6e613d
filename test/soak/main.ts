import {parseArgs} from 'node:util';
import {missingForNetns} from '../support/netns.ts';
import {renderSoak, soak} from './soak.ts';

/** `scripts/soak --help`. */
const usage = `Short connections while everything crashes, and what of them passes Envoy by: see test/soak/README.md.
  --connections N   until so many were answered; 1000000
  --per-second N    at most so many; 3000
  --every SECONDS   between two events, on average; 4
  --seed N          what happens; 1`;

const {values} = parseArgs({
	options: {
		connections: {type: 'string', default: '1000000'},
		'per-second': {type: 'string', default: '3000'},
		every: {type: 'string', default: '4'},
		seed: {type: 'string', default: '1'},
		help: {type: 'boolean', default: false},
	},
});
if (values.help) {
	console.log(usage);
	process.exit(0);
}
const missing = missingForNetns();
if (missing) {
	console.error(`soak: ${missing}`);
	process.exit(2);
}
const teardowns: (() => unknown)[] = [];
let exitCode = 1;
try {
	const report = await soak({
		t: {teardown: what => void teardowns.push(what)},
		seed: Number(values.seed),
		connections: Number(values.connections),
		perSecond: Number(values['per-second']),
		everyMs: Number(values.every) * 1000,
		tell: console.log,
	});
	console.log(renderSoak(report));
	exitCode = report.problems.length === 0 ? 0 : 1;
} finally {
	for (const each of teardowns.reverse()) await each();
}
process.exit(exitCode);
