import test from 'ava';
import {count, nothing, type Verdict} from '../../../src/health/tally.ts';
import {decide, type Evidence} from '../../../src/health/verdict.ts';

const thresholds = {successThreshold: 2, failureThreshold: 3};

/** Results as `+` and `-`, verdicts as letters. */
const results = test.macro({
	title: (_, sequence: string, verdicts: string) => `tally › 2 to be healthy, 3 to be not: ${sequence} is ${verdicts}`,
	exec(t, sequence: string, verdicts: string) {
		const letters: Record<Verdict, string> = {unknown: '?', healthy: 'h', unhealthy: 'u'};
		let tally = nothing;
		const seen = [...sequence].map(result => {
			tally = count(tally, result === '+', thresholds);
			return letters[tally.verdict];
		});
		t.is(seen.join(''), verdicts);
	},
});

test(results, '++++', '?hhh');
test(results, '----', '??uu');
test(results, '+-+-+-', '??????');
test(results, '++--+---', '?hhhhhhu');
test(results, '++---+++', '?hhhuuhh');
test(results, '---+-++', '??uuuuh');

const word = (said: 'ready' | 'unready', reason = '') => ({said, reason, at: new Date(0)});
const good: Evidence = {
	mode: 'auto',
	word: undefined,
	proxy: {state: 'ready'},
	probes: [
		{name: 'web', verdict: 'healthy', failure: undefined},
		{name: 'db', verdict: 'healthy', failure: 'one that did not count'},
	],
};
const failing = {name: 'web', verdict: 'unhealthy', failure: 'HTTP status 500'} as const;
const waiting = {name: 'db', verdict: 'unknown', failure: undefined} as const;
const cases: readonly [string, Partial<Evidence>, ReturnType<typeof decide>][] = [
	['all is well', {}, {state: 'healthy'}],
	['one probe failing is enough', {probes: [failing, waiting]}, {state: 'unhealthy', reason: 'web: HTTP status 500'}],
	[
		'all that fail are named',
		{probes: [failing, {...failing, name: 'db', failure: undefined}]},
		{state: 'unhealthy', reason: 'web: HTTP status 500; db: failed'},
	],
	['a probe that knows nothing yet is waited for', {probes: [waiting]}, {state: 'unknown', reason: 'waiting for db'}],
	['no Envoy, no health', {proxy: {state: 'unready', reason: 'it drains'}}, {state: 'unhealthy', reason: 'it drains'}],
	['Envoy is waited for', {proxy: {state: 'unknown'}}, {state: 'unknown', reason: 'waiting for Envoy'}],
	[
		'maintenance counts most',
		{word: word('unready', 'new disk')},
		{state: 'unhealthy', reason: 'maintenance: new disk'},
	],
	['and needs no reason', {word: word('unready')}, {state: 'unhealthy', reason: 'maintenance'}],
	[
		'that it is ready does not overrule probes',
		{word: word('ready'), probes: [failing]},
		{state: 'unhealthy', reason: 'web: HTTP status 500'},
	],
	[
		'without a word, manual is unhealthy',
		{mode: 'manual'},
		{state: 'unhealthy', reason: 'the application has not said that it is ready'},
	],
	['with it, it is healthy', {mode: 'manual', word: word('ready'), probes: []}, {state: 'healthy'}],
];
for (const [title, evidence, finding] of cases)
	test(`health › ${title}`, t => t.deepEqual(decide({...good, ...evidence}), finding));
