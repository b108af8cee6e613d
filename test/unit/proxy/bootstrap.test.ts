import {readFile, writeFile} from 'node:fs/promises';
import test from 'ava';
import {renderBootstrap} from '../../../src/proxy/index.ts';
import {input} from './bootstrap-input.ts';

const golden = new URL('bootstrap.golden.json', import.meta.url);

test('bootstrap › is the golden file', async t => {
	const rendered = renderBootstrap(input);
	// The one way to change the golden file: UPDATE_GOLDEN=1, the formatter, and a look at the diff.
	if (process.env['UPDATE_GOLDEN']) await writeFile(golden, JSON.stringify(rendered));
	t.deepEqual(rendered, JSON.parse(await readFile(golden, 'utf8')));
});

test('bootstrap › is rendered the same twice, since its hash decides about adoption', t => {
	t.is(JSON.stringify(renderBootstrap(input)), JSON.stringify(renderBootstrap(structuredClone(input))));
});

test('bootstrap › without a status port envoy answers the readiness path itself and there is no agent cluster', t => {
	const text = JSON.stringify(renderBootstrap({...input, statusPort: 0}));
	t.false(text.includes('"cluster":"agent"'));
	t.true(text.includes('"pass_through_mode":false'));
});

for (const [bound, asked] of [
	['0.0.0.0', '127.0.0.1'],
	['::', '::1'],
	['10.0.0.5', '10.0.0.5'],
	['fd00::5', 'fd00::5'],
] as const) {
	test(`bootstrap › envoy asks an agent that is bound to ${bound} at ${asked}`, t => {
		const {static_resources} = renderBootstrap({...input, statusAddress: bound}) as {
			static_resources: {clusters: {name: string}[]};
		};
		const agent = static_resources.clusters.find(({name}) => name === 'agent');
		t.regex(JSON.stringify(agent), new RegExp(`{"address":"${asked}","port_value":15020}`));
	});
}

test('bootstrap › an empty runtime value takes the default away', t => {
	const text = JSON.stringify(renderBootstrap(input));
	t.false(text.includes('http_reject_path_with_fragment'));
	t.true(text.includes('"overload.x":"100"'));
});
