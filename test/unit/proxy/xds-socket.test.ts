import {existsSync, statSync} from 'node:fs';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {createServer, type Server} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {AgentError} from '../../../src/errors.ts';
import {silentLogger} from '../../../src/log.ts';
import {startXdsSocket} from '../../../src/proxy/xds.ts';

async function folderOf(t: ExecutionContext): Promise<string> {
	const folder = await mkdtemp(join(tmpdir(), 'onramp-socket-'));
	t.teardown(() => rm(folder, {recursive: true, force: true}));
	return folder;
}

const start = (path: string) => startXdsSocket({path, services: [], log: silentLogger});

async function refusedFor(t: ExecutionContext, path: string, message: RegExp): Promise<void> {
	const error = await t.throwsAsync(start(path), {instanceOf: AgentError, message});
	t.is(error?.code, 'relay.socket_unusable');
	t.true(error?.message.includes(path));
	t.truthy(error?.hint);
}

test('xds socket › is private, in a private folder, and gone after the stop', async t => {
	const path = join(await folderOf(t), 'run', 'xds.sock');
	const socket = await start(path);
	t.is(statSync(path).mode & 0o777, 0o600);
	t.is(statSync(join(path, '..')).mode & 0o777, 0o700);
	await socket.stop();
	await socket.stop();
	t.false(existsSync(path));
});

test('xds socket › replaces one on which nobody answers', async t => {
	const path = join(await folderOf(t), 'xds.sock');
	// A server whose name is moved away and back when it has closed leaves a dead socket, as kill -9 does.
	const dead = await listen(`${path}.tmp`);
	const {renameSync} = await import('node:fs');
	renameSync(`${path}.tmp`, path);
	await new Promise(resolve => dead.close(resolve));
	t.true(existsSync(path));
	const socket = await start(path);
	await socket.stop();
});

test('xds socket › leaves one on which another agent answers', async t => {
	const path = join(await folderOf(t), 'xds.sock');
	const first = await start(path);
	t.teardown(() => first.stop());
	await refusedFor(t, path, /another process answers/);
	t.true(existsSync(path));
});

test('xds socket › leaves a file that is no socket', async t => {
	const path = join(await folderOf(t), 'xds.sock');
	await writeFile(path, 'precious');
	await refusedFor(t, path, /not a socket/);
	t.true(existsSync(path));
});

test('xds socket › says so when the path is too long for the kernel', async t => {
	await refusedFor(t, join(await folderOf(t), 'x'.repeat(100)), /longer than 103 bytes/);
});

test("xds socket › a stop does not take away the next agent's socket", async t => {
	const path = join(await folderOf(t), 'xds.sock');
	const first = await start(path);
	await rm(path);
	const second = await start(path);
	await first.stop();
	t.true(existsSync(path));
	await second.stop();
});

async function listen(path: string): Promise<Server> {
	const server = createServer();
	await new Promise<void>(resolve => server.listen(path, resolve));
	return server;
}
