import {execFileSync, spawn} from 'node:child_process';
import {chmod, mkdtemp, readFile, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {delimiter, join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {Readiness} from '../../../src/lifecycle/index.ts';
import {type Notification, type NotifierDeps, startSystemdNotifier} from '../../../src/lifecycle/systemd.ts';
import {type Logger, silentLogger} from '../../../src/log.ts';
import {FakeClock} from '../../support/fake-clock.ts';

interface Bench {
	readonly clock: FakeClock;
	readonly readiness: Readiness;
	readonly sent: Notification[];
	readonly deps: NotifierDeps;
	setStatus(text: string): void;
}

function makeBench(more: Partial<NotifierDeps> = {}): Bench {
	const clock = new FakeClock();
	const readiness = new Readiness(['identity']);
	const sent: Notification[] = [];
	let status = 'starting';
	const deps: NotifierDeps = {
		env: {NOTIFY_SOCKET: '/nowhere'},
		readiness,
		clock,
		log: silentLogger,
		statusText: () => status,
		send: async notification => {
			sent.push(notification);
		},
		...more,
	};
	const setStatus = (text: string) => {
		status = text;
	};
	return {clock, readiness, sent, deps, setStatus};
}

const statuses = (sent: readonly Notification[]) => sent.flatMap(({status}) => status ?? []);
const assignments = (sent: readonly Notification[], start: string) =>
	sent.flatMap(notification => (notification.assignments ?? []).filter(text => text.startsWith(start)));

/** Waits until `read` gives something, at most ten seconds. */
async function eventually<T>(read: () => Promise<T | undefined>): Promise<T> {
	for (const endMs = Date.now() + 10_000; Date.now() < endMs; ) {
		const value = await read();
		if (value !== undefined) return value;
		await new Promise(resolve => setTimeout(resolve, 20));
	}
	throw new Error('nothing came within ten seconds');
}

test('systemd › is not told anything without NOTIFY_SOCKET', async t => {
	const {deps, readiness, sent} = makeBench({env: {WATCHDOG_USEC: '1000'}});
	const notifier = startSystemdNotifier(deps);
	readiness.gate('identity').open();
	await notifier.announceStop();
	await notifier.stop();
	t.deepEqual(sent, []);
});

test('systemd › hears READY once, when all gates are open for the first time', async t => {
	const {clock, deps, readiness, sent} = makeBench();
	const notifier = startSystemdNotifier(deps);
	t.teardown(() => notifier.stop());
	await clock.advance(1000);
	t.false(sent.some(({isReady}) => isReady));
	readiness.gate('identity').open();
	readiness.gate('identity').close('lost');
	readiness.gate('identity').open();
	await clock.advance(60_000);
	t.is(sent.filter(({isReady}) => isReady).length, 1);
});

test('systemd › hears READY when the agent is up, though what waits for it is missing', async t => {
	const {clock, deps, readiness, sent} = makeBench();
	let isUp = false;
	const notifier = startSystemdNotifier({...deps, isUp: () => isUp});
	t.teardown(() => notifier.stop());
	readiness.gate('identity').close('one');
	await clock.advance(0);
	t.false(sent.some(({isReady}) => isReady));
	isUp = true;
	readiness.gate('identity').close('another');
	await clock.advance(0);
	t.is(sent.filter(({isReady}) => isReady).length, 1);
});

test('systemd › hears READY at once when the gates are open already', async t => {
	const {clock, deps, readiness, sent} = makeBench();
	readiness.gate('identity').open();
	const notifier = startSystemdNotifier(deps);
	t.teardown(() => notifier.stop());
	await clock.advance(0);
	t.like(sent[0], {isReady: true, status: 'starting'});
});

test('systemd › hears of a change of status at once, and of the last of many within five seconds', async t => {
	const {clock, deps, readiness, sent, setStatus} = makeBench();
	const notifier = startSystemdNotifier(deps);
	t.teardown(() => notifier.stop());
	await clock.advance(5000);
	for (const text of ['a', 'b', 'c']) {
		setStatus(text);
		readiness.gate('identity').close(text);
	}
	await clock.advance(0);
	t.deepEqual(statuses(sent), ['starting', 'a']);
	await clock.advance(5000);
	t.deepEqual(statuses(sent), ['starting', 'a', 'c']);
	await clock.advance(60_000);
	t.deepEqual(statuses(sent), ['starting', 'a', 'c']);
});

test('systemd › gives more time while starting and while stopping, not while ready', async t => {
	const {clock, deps, readiness, sent} = makeBench();
	const notifier = startSystemdNotifier(deps);
	await clock.advance(45_000);
	t.is(assignments(sent, 'EXTEND_TIMEOUT_USEC=60000000').length, 4);
	readiness.gate('identity').open();
	await clock.advance(60_000);
	t.is(assignments(sent, 'EXTEND').length, 4);
	await notifier.announceStop();
	await clock.advance(15_000);
	t.true(assignments(sent, 'EXTEND').length >= 6);
	await notifier.stop();
});

test('systemd › gets its watchdog pings at half the interval, also while draining, and none when not alive', async t => {
	let isAlive = true;
	const {clock, deps, sent} = makeBench({
		env: {NOTIFY_SOCKET: '/x', WATCHDOG_USEC: '10000000'},
		isAlive: () => isAlive,
	});
	const notifier = startSystemdNotifier(deps);
	await clock.advance(20_000);
	t.is(assignments(sent, 'WATCHDOG=1').length, 5);
	isAlive = false;
	await clock.advance(20_000);
	t.is(assignments(sent, 'WATCHDOG=1').length, 5);
	isAlive = true;
	await notifier.announceStop();
	await clock.advance(5000);
	t.is(assignments(sent, 'WATCHDOG=1').length, 6);
	await notifier.stop();
	await clock.advance(60_000);
	t.is(assignments(sent, 'WATCHDOG=1').length, 6);
});

test('systemd › gets no pings that are meant to come from another process', async t => {
	const {clock, deps, sent} = makeBench({env: {NOTIFY_SOCKET: '/x', WATCHDOG_USEC: '10000000', WATCHDOG_PID: '1'}});
	const notifier = startSystemdNotifier(deps);
	t.teardown(() => notifier.stop());
	await clock.advance(60_000);
	t.deepEqual(assignments(sent, 'WATCHDOG'), []);
});

test('systemd › hears STOPPING once', async t => {
	const {deps, sent} = makeBench();
	const notifier = startSystemdNotifier(deps);
	await notifier.announceStop();
	await notifier.stop();
	await notifier.stop();
	t.deepEqual(assignments(sent, 'STOPPING'), ['STOPPING=1']);
});

test('systemd › that cannot be notified is one warning, and the agent goes on', async t => {
	const warnings: unknown[] = [];
	const log = {warn: (fields: unknown) => warnings.push(fields), debug: () => {}} as unknown as Logger;
	const send = () => Promise.reject(Object.assign(new Error('spawn systemd-notify ENOENT'), {code: 'ENOENT'}));
	const {clock, deps} = makeBench({log, send});
	const notifier = startSystemdNotifier(deps);
	await clock.advance(60_000);
	await notifier.stop();
	t.is(warnings.length, 1);
	t.regex(JSON.stringify(warnings), /install the program systemd-notify/);
});

async function makeDir(t: ExecutionContext): Promise<string> {
	const dir = await mkdtemp(join(tmpdir(), 'onramp-systemd-'));
	t.teardown(() => rm(dir, {recursive: true, force: true}));
	return dir;
}

/** The npm module looks at the process's own environment, so these two change it, one after the other. */
function setEnvironment(t: ExecutionContext, values: Record<string, string>): void {
	for (const [name, value] of Object.entries(values)) {
		const before = process.env[name];
		process.env[name] = value;
		t.teardown(() => {
			if (before === undefined) delete process.env[name];
			else process.env[name] = before;
		});
	}
}

const program = test.serial;

program('systemd › is told through the program systemd-notify, one message after the other', async t => {
	const dir = await makeDir(t);
	const record = join(dir, 'record');
	await writeFile(join(dir, 'systemd-notify'), `#!/bin/sh\necho "$NOTIFY_SOCKET $*" >> ${record}\n`);
	await chmod(join(dir, 'systemd-notify'), 0o755);
	setEnvironment(t, {PATH: `${dir}${delimiter}${process.env['PATH']}`, NOTIFY_SOCKET: '/run/fake'});
	const {deps, readiness, setStatus} = makeBench({env: process.env, send: undefined});
	setStatus('two\nlines');
	readiness.gate('identity').open();
	const notifier = startSystemdNotifier(deps);
	await notifier.stop();
	const lines = (await readFile(record, 'utf8')).trim().split('\n');
	t.deepEqual(lines, [
		`/run/fake --ready --pid=${process.pid} --status=two lines`,
		'/run/fake STOPPING=1 EXTEND_TIMEOUT_USEC=60000000',
	]);
});

const receiver = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print('bound', flush=True)
while True:
    print(repr(s.recv(4096).decode()), flush=True)
`;

function hasTools(): boolean {
	try {
		execFileSync('systemd-notify', ['--version'], {stdio: 'ignore'});
		execFileSync('python3', ['--version'], {stdio: 'ignore'});
		return true;
	} catch {
		// One of the two is not installed here; the fake program above still covers what is sent.
		return false;
	}
}

const withTools = hasTools() ? program : program.skip;

withTools('systemd › receives the datagrams it expects from the real program', async t => {
	const dir = await makeDir(t);
	const path = join(dir, 'notify.sock');
	const child = spawn('python3', ['-c', receiver, path], {stdio: ['ignore', 'pipe', 'inherit']});
	t.teardown(() => child.kill('SIGKILL'));
	let output = '';
	child.stdout.on('data', (chunk: Buffer) => {
		output += chunk.toString();
	});
	const seen = (text: string) => eventually(async () => (output.includes(text) ? true : undefined));
	await seen('bound');
	setEnvironment(t, {NOTIFY_SOCKET: path});
	const {deps, readiness} = makeBench({env: {...process.env, WATCHDOG_USEC: '60000000'}, send: undefined});
	const notifier = startSystemdNotifier(deps);
	readiness.gate('identity').open();
	for (const text of ['READY=1', `MAINPID=${process.pid}`, 'STATUS=starting', 'WATCHDOG=1']) await seen(text);
	await notifier.stop();
	await seen('STOPPING=1');
	t.pass();
});
