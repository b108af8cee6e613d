import {existsSync} from 'node:fs';
import {chmod, writeFile} from 'node:fs/promises';
import {connect} from 'node:net';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {startTimeOf} from '../../../src/proxy/linux-process.ts';
import {tinyAds} from './ads.ts';
import {makeWorld, until, type World} from './world.ts';

/** Envoy at a path whose content can be changed, as a package does it. */
async function replaceable(world: World, script: string): Promise<string> {
	const path = join(world.folder, 'envoy');
	await writeFile(path, `#!/bin/sh\n${script}\n`);
	await chmod(path, 0o755);
	return path;
}

/** An Envoy that serves, started from such a path. */
async function startReplaceable(t: ExecutionContext) {
	const world = await makeWorld();
	t.teardown(() => world.end());
	await world.startXds();
	const binaryPath = await replaceable(world, `exec ${world.config.binaryPath} "$@"`);
	const proxy = await world.start({binaryPath});
	await until('ready', () => world.readiness.isReady);
	return {world, proxy, pid: proxy.status().pid};
}

test('succession › a new Envoy that ends at once changes nothing, and says why', async t => {
	const {world, proxy, pid} = await startReplaceable(t);
	await replaceable(world, 'exit 7');
	await t.throwsAsync(proxy.replace(), {code: 'proxy.replacement_failed', message: /it ended \(code 7\)/});
	t.like(proxy.status(), {pid, state: 'running', restarts: 0});
	t.true(world.readiness.isReady);
	// Mended, it works.
	await replaceable(world, `exec ${world.config.binaryPath} "$@"`);
	await proxy.replace();
	t.not(proxy.status().pid, pid);
	t.true(world.readiness.isReady);
	await until('the end of the old one', () => startTimeOf(pid!) === undefined);
});

test('succession › a new Envoy that gets no configuration is given up in time, and the old one goes on', async t => {
	const world = await makeWorld();
	t.teardown(() => world.end());
	const ads = tinyAds();
	const {implementation} = ads;
	const serve = implementation['DeltaAggregatedResources'] as (call: unknown) => void;
	const silent = {
		...ads,
		implementation: {
			...implementation,
			DeltaAggregatedResources: (call: unknown) => {
				if (ads.streams === 0) serve(call);
			},
		},
	};
	await world.startXds([silent]);
	const proxy = await world.start({replaceTimeoutMs: 3000});
	await until('ready', () => world.readiness.isReady);
	const {pid} = proxy.status();
	await t.throwsAsync(proxy.replace(), {message: /not ready within 3 s: envoy is .*waits for its first CDS/});
	t.like(proxy.status(), {pid, state: 'running'});
	t.is(await proxy.admin.ready(), 'LIVE');
});

test('succession › an Envoy without an optional flag can replace one with it', async t => {
	const {world, proxy, pid} = await startReplaceable(t);
	const complaint = "--skip-deprecated-logs -- Couldn't find match for argument";
	await replaceable(
		world,
		`case "$*" in *--skip-deprecated-logs*) echo "${complaint}" >&2; exit 1;; esac; exec ${world.config.binaryPath} "$@"`,
	);
	await proxy.replace();
	t.not(proxy.status().pid, pid);
	t.is(proxy.status().restarts, 0);
});

test('succession › an agent told to leave Envoy leaves the replaced one too, and the next agent sees it out', async t => {
	const world = await makeWorld({onStop: 'leave', drainMs: 20_000});
	t.teardown(() => world.end());
	await world.startXds();
	const proxy = await world.start();
	await until('ready', () => world.readiness.isReady);
	const old = proxy.status().pid!;
	await proxy.replace();
	const pid = proxy.status().pid!;
	await proxy.stop();
	// Envoy ends within milliseconds of being asked; nothing tells that it was not.
	for (const until = performance.now() + 500; performance.now() < until; await new Promise(r => setTimeout(r, 20)))
		for (const each of [old, pid]) t.not(startTimeOf(each), undefined);
	const next = await world.start({onStop: 'stop'});
	t.like(next.status(), {pid, adopted: true, retiring: old});
	await next.stop();
	t.is(startTimeOf(old), undefined);
	t.is(startTimeOf(pid), undefined);
});

test('succession › an old Envoy is given its own drain time, not that of today’s settings', async t => {
	const world = await makeWorld({drainMs: 3000});
	t.teardown(() => world.end());
	await world.startXds();
	const first = await world.start({onStop: 'leave'});
	await until('ready', () => world.readiness.isReady);
	const old = first.status().pid!;
	await first.stop();
	const next = await world.start({drainMs: 100});
	await until('another to serve', () => next.status().retiring === old);
	const startedMs = performance.now();
	await until('its end', () => startTimeOf(old) === undefined);
	t.true(performance.now() - startedMs > 2500, 'it takes connections until then');
});

test('succession › a new Envoy that ends is started again at once, though the old one still has the ports', async t => {
	const world = await makeWorld({drainMs: 20_000});
	t.teardown(() => world.end());
	await world.startXds();
	const proxy = await world.start();
	await until('ready', () => world.readiness.isReady);
	const old = proxy.status().pid!;
	await proxy.replace();
	process.kill(proxy.status().pid!, 'SIGKILL');
	await until('its end to be seen', () => proxy.status().restarts === 1);
	await until('ready again', () => world.readiness.isReady && proxy.status().state === 'running');
	t.not(startTimeOf(old), undefined, 'the old one is still on its way out');
	t.is(proxy.status().retiring, old);
});

test('succession › a new Envoy that is ready only when the old one drains for good is ended, and takes no work', async t => {
	const {world, proxy, pid} = await startReplaceable(t);
	await replaceable(world, `sleep 1; exec ${world.config.binaryPath} "$@"`);
	const replaced = t.throwsAsync(proxy.replace(), {code: 'proxy.replacement_failed', message: /none that serves/});
	await until('the second', () => existsSync(join(world.folder, 'envoy-b.json')));
	await proxy.drain();
	await replaced;
	t.is(proxy.status().pid, pid);
	t.is(await proxy.admin.ready(), 'DRAINING');
});

test('succession › an agent that finds only the replaced Envoy sees it out, and starts another to serve', async t => {
	const world = await makeWorld({onStop: 'leave', drainMs: 4000});
	t.teardown(() => world.end());
	await world.startXds();
	const first = await world.start();
	await until('ready', () => world.readiness.isReady);
	const old = first.status().pid!;
	await first.replace();
	const serving = first.status().pid!;
	await first.stop();
	process.kill(serving, 'SIGKILL');
	await until('its end', () => startTimeOf(serving) === undefined);
	t.not(startTimeOf(old), undefined, 'it is still on its way out');

	const next = await world.start({onStop: 'stop'});
	await until('ready', () => world.readiness.isReady && next.status().state === 'running');
	t.like(next.status(), {adopted: false, retiring: old, warnings: []});
	await until('the end of the old one', () => startTimeOf(old) === undefined);
	t.true(await isListening(world.config.readinessPort), 'another listens');
	t.is(next.status().state, 'running');
});

test('succession › an Envoy that has closed its listeners is noticed, though it says that it is LIVE, and replaced', async t => {
	const world = await makeWorld();
	t.teardown(() => world.end());
	await world.startXds();
	const proxy = await world.start();
	await until('ready', () => world.readiness.isReady);
	const {pid} = proxy.status();
	await proxy.admin.post('/drain_listeners');
	await until('nobody to listen', async () => !(await isListening(world.config.readinessPort)));
	t.is(await proxy.admin.ready(), 'LIVE');
	await until('another', () => proxy.status().pid !== pid);
	t.true(await isListening(world.config.readinessPort));
	await until('ready again', () => world.readiness.isReady);
	t.is(proxy.status().restarts, 0);
});

const isListening = (port: number): Promise<boolean> =>
	new Promise(resolve => {
		const socket = connect(port, '127.0.0.1');
		socket.on('connect', () => resolve(true)).on('error', () => resolve(false));
		socket.on('close', () => socket.destroy()).on('connect', () => socket.destroy());
	});
