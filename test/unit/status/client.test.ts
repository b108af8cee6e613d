import {mkdtemp, rename, rm} from 'node:fs/promises';
import {createServer, type Server} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import type {AgentError} from '../../../src/errors.ts';
import {fetchStatus} from '../../../src/status/client.ts';

async function makeDir(t: ExecutionContext): Promise<string> {
	const dir = await mkdtemp(join(tmpdir(), 'onramp-client-'));
	t.teardown(() => rm(dir, {recursive: true, force: true}));
	return dir;
}

function listen(path: string, onData: string | undefined): Promise<Server> {
	return new Promise(resolve => {
		const server = createServer(socket => {
			socket.on('error', () => {});
			socket.on('data', () => onData !== undefined && socket.end(onData));
		});
		server.listen(path, () => resolve(server));
	});
}

test('status client › says that the agent is not running when there is no socket', async t => {
	const error = await t.throwsAsync<AgentError>(fetchStatus(join(await makeDir(t), 'control.sock')), {
		code: 'status.unreachable',
	});
	t.regex(error.message, /agent is not running/);
	t.regex(error.hint ?? '', /systemctl restart onramp/);
});

test('status client › says that the agent is not running when nobody is behind the socket', async t => {
	const dir = await makeDir(t);
	const server = await listen(join(dir, 'a'), undefined);
	await rename(join(dir, 'a'), join(dir, 'control.sock'));
	await new Promise(resolve => server.close(resolve));
	const error = await t.throwsAsync<AgentError>(fetchStatus(join(dir, 'control.sock')), {code: 'status.unreachable'});
	t.regex(error.message, /nobody answers/);
});

test('status client › gives up on an agent that hangs', async t => {
	const path = join(await makeDir(t), 'control.sock');
	const server = await listen(path, undefined);
	t.teardown(() => server.close());
	const error = await t.throwsAsync<AgentError>(fetchStatus(path), {code: 'status.unreachable'});
	t.regex(error.message, /no answer within 5 s/);
});

for (const [what, answer] of [
	['what is not HTTP', 'hello\r\n\r\n'],
	['what is not JSON', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{{'],
] as const) {
	test(`status client › turns ${what} into an error with the place`, async t => {
		const path = join(await makeDir(t), 'control.sock');
		const server = await listen(path, answer);
		t.teardown(() => server.close());
		await t.throwsAsync(fetchStatus(path), {code: 'status.unreachable', message: new RegExp(path)});
	});
}
