import test from 'ava';
import {RemovalSummary} from '../../../src/relay/rewrite-summary.ts';

const stats = {
	resource: 'a',
	category: 'envoy.filters.http',
	name: 'istio.stats',
	type: 'stats.PluginConfig',
	lost: 'metrics',
};

test('removal summary › says once that a kind is new, and counts the rest', t => {
	const summary = new RemovalSummary();
	t.true(summary.note(stats));
	t.false(summary.note({...stats, resource: 'b'}));
	t.true(summary.note({...stats, category: 'envoy.filters.network'}));
	t.deepEqual(summary.list(), [
		{...stats, times: 2},
		{...stats, category: 'envoy.filters.network', times: 1},
	]);
});

test('removal summary › begins anew for another Envoy', t => {
	const summary = new RemovalSummary();
	summary.note(stats);
	summary.clear();
	t.deepEqual(summary.list(), []);
	t.true(summary.note(stats));
});

test('removal summary › does not grow without end', t => {
	const summary = new RemovalSummary();
	for (let i = 0; i < 1000; i++) summary.note({...stats, name: `optional-${i}`});
	t.is(summary.list().length, 100);
});
