import {mkdtempSync, rmSync} from 'node:fs';
import {createServer} from 'node:http';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {untilReady} from '../../../src/cli/join/until-ready.ts';

test('join › what has failed beside the agent is told as the agent has it, which hears of it a moment later', async t => {
	const directory = mkdtempSync(join(tmpdir(), 'onramp-until-'));
	t.teardown(() => rmSync(directory, {recursive: true, force: true}));
	const controlSocketPath = join(directory, 'control.sock');
	let reason = 'the rules are not in yet';
	const server = createServer((_, response) => {
		response.end(JSON.stringify({pid: 1, ready: false, gates: [{name: 'capture', open: false, reason}], parts: {}}));
	});
	await new Promise<void>(resolve => server.listen(controlSocketPath, resolve));
	t.teardown(() => server.close());
	const said: string[] = [];
	const isReady = await untilReady({
		controlSocketPath,
		waitMs: 60_000,
		formerPid: undefined,
		say: line => said.push(line),
		failure: async () => {
			// Two looks later at the earliest.
			setTimeout(() => {
				reason = 'the kernel refused them';
			}, 150);
			return 'the rules could not be put in';
		},
		signal: new AbortController().signal,
	});
	t.false(isReady);
	t.deepEqual(said, ['the rules could not be put in; the agent goes on trying', '  capture: the kernel refused them']);
});
