import {type ChildProcess, spawn} from 'node:child_process';
import {once} from 'node:events';
import {rmSync} from 'node:fs';
import {fileURLToPath} from 'node:url';
import anyTest, {type TestFn} from 'ava';
import type {ProxyConfig} from '../../../src/config/types.ts';
import type {EnvoyProxy} from '../../../src/proxy/index.ts';
import {startTimeOf} from '../../../src/proxy/linux-process.ts';
import {makeWorld, until, type World} from './world.ts';

const test = anyTest as TestFn<{world: World; agents: ChildProcess[]; envoys: number[]}>;

test.beforeEach(async t => {
	t.context = {world: await makeWorld(), agents: [], envoys: []};
});
test.afterEach.always(async t => {
	for (const agent of t.context.agents) agent.kill('SIGKILL');
	await t.context.world.end();
	// What a failed test has left; a passed one has ended its own.
	for (const pid of t.context.envoys) if (startTimeOf(pid) !== undefined) process.kill(pid, 'SIGKILL');
});

type Context = {world: World; agents: ChildProcess[]; envoys: number[]};

/** An agent in a process of its own; resolves with the pid of its Envoy once that serves. */
async function startAgent({world, agents, envoys}: Context): Promise<{agent: ChildProcess; pid: number}> {
	const {config, node, xdsSocketPath} = world.deps;
	const script = fileURLToPath(new URL('agent-child.ts', import.meta.url));
	const agent = spawn(process.execPath, [script, JSON.stringify({config, node, xdsSocketPath})], {
		stdio: ['ignore', 'pipe', 'inherit'],
	});
	agents.push(agent);
	const [line] = (await once(agent.stdout!, 'data')) as [Buffer];
	const pid = Number(line.toString().split(' ')[1]);
	envoys.push(pid);
	return {agent, pid};
}

/** Kills an agent as a crash would, and starts the next one here. */
async function crashAndReturn(context: Context, overrides: Partial<ProxyConfig> = {}, between = () => {}) {
	const {agent, pid} = await startAgent(context);
	agent.kill('SIGKILL');
	await once(agent, 'exit');
	between();
	await context.world.startXds();
	const proxy = await context.world.start(overrides);
	const now = proxy.status().pid;
	if (now !== undefined) context.envoys.push(now);
	await until(
		() => JSON.stringify(context.world.readiness.states()),
		() => context.world.readiness.isReady,
	);
	return {pid, proxy};
}

/** Ready all the while. */
async function untilReplaced({world, envoys}: Context, proxy: EnvoyProxy, pid: number): Promise<void> {
	await until('another envoy', () => {
		if (!world.readiness.isReady) throw new Error(JSON.stringify(world.readiness.states()));
		return proxy.status().pid !== pid;
	});
	envoys.push(proxy.status().pid!);
	await until('the end of the old one', () => startTimeOf(pid) === undefined);
}

test('adoption › envoy outlives a killed agent, and the next one takes it over', async t => {
	const {pid, proxy} = await crashAndReturn(t.context);
	t.like(proxy.status(), {pid, adopted: true, version: '1.40.0', restarts: 0, state: 'running'});
	await proxy.stop();
	t.is(startTimeOf(pid), undefined, 'an adopted envoy is ended too');
});

test('adoption › an adopted envoy that dies is noticed and restarted', async t => {
	const {pid, proxy} = await crashAndReturn(t.context);
	process.kill(pid, 'SIGKILL');
	await until('another envoy', () => proxy.status().pid !== pid && proxy.status().state === 'running');
	t.context.envoys.push(proxy.status().pid!);
	t.like(proxy.status(), {adopted: false, restarts: 1});
	t.is(proxy.status().lastExit!.code, undefined);
});

test('adoption › finds envoy without the record, by its command line', async t => {
	const {recordPath} = t.context.world.config;
	const {pid, proxy} = await crashAndReturn(t.context, {}, () => rmSync(recordPath));
	t.like(proxy.status(), {pid, adopted: true});
});

test('adoption › an envoy with another bootstrap serves until one with ours does', async t => {
	const {pid, proxy} = await crashAndReturn(t.context, {statsPrefixes: ['more'], drainMs: 500});
	await untilReplaced(t.context, proxy, pid);
	t.is(proxy.status().adopted, false);
});

test('adoption › an envoy with other arguments serves until one with ours does', async t => {
	const {pid, proxy} = await crashAndReturn(t.context, {concurrency: 2, drainMs: 500});
	await untilReplaced(t.context, proxy, pid);
	t.is(proxy.status().adopted, false);
});

test('adoption › an envoy that an agent began to drain is replaced, as there is no way back', async t => {
	const {world} = t.context;
	await world.startXds();
	const first = await world.start({onStop: 'leave'});
	const {pid} = first.status();
	t.context.envoys.push(pid!);
	await until('serving', () => world.readiness.isReady);
	await first.admin.post('/healthcheck/fail');
	await first.stop();
	const next = await world.start();
	t.context.envoys.push(next.status().pid!);
	t.is(startTimeOf(pid!), undefined);
	t.is(next.status().adopted, false);
});

test('adoption › an agent told to leave envoy stops without it', async t => {
	const {world} = t.context;
	await world.startXds();
	const first = await world.start({onStop: 'leave'});
	const {pid} = first.status();
	t.context.envoys.push(pid!);
	await until('serving', () => world.readiness.isReady);
	await first.stop();
	t.is(first.status().state, 'stopped');
	t.is(await first.admin.ready(), 'LIVE');
	const next = await world.start();
	t.like(next.status(), {pid, adopted: true});
});
