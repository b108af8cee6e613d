import {type ChildProcess, spawn} from 'node:child_process';
import {once} from 'node:events';
import {existsSync, readFileSync} from 'node:fs';
import test, {type ExecutionContext} from 'ava';
import type {ProxyConfig} from '../../../src/config/types.ts';
import {unitScriptPath} from '../../../src/proxy/unit-files.ts';
import {until} from '../../support/mesh.ts';
import {makeWorld, type World} from './world.ts';

interface Unit {
	/** Of the Envoy that runs. */
	pid(): number | undefined;
	starts(): number;
}

/** What onramp-envoy.service does: runs the script once it is there, again and again. */
function startUnit(t: ExecutionContext, config: ProxyConfig): Unit {
	let child: ChildProcess | undefined;
	let [starts, isStopped] = [0, false];
	const keep = async (): Promise<void> => {
		await until('the script', () => isStopped || existsSync(unitScriptPath(config)), 60_000);
		while (!isStopped) {
			child = spawn('/bin/sh', [unitScriptPath(config)], {stdio: 'ignore'});
			starts++;
			await once(child, 'exit');
			await new Promise(resolve => setTimeout(resolve, 100));
		}
	};
	const running = keep();
	t.teardown(async () => {
		isStopped = true;
		child?.kill('SIGKILL');
		await running;
	});
	return {
		pid: () => (child?.exitCode === null && child.signalCode === null ? child.pid : undefined),
		starts: () => starts,
	};
}

const untilReady = ({readiness}: World): Promise<true> =>
	until('Envoy to be ready', () => readiness.isReady || undefined);

async function makeUnitWorld(t: ExecutionContext): Promise<{world: World; unit: Unit}> {
	const world = await makeWorld({mode: 'unit'});
	const unit = startUnit(t, world.config);
	await world.startXds();
	t.teardown(() => world.end());
	return {world, unit};
}

test.serial('unit mode › an agent that stops leaves Envoy, and the next one takes the same Envoy over', async t => {
	const {world, unit} = await makeUnitWorld(t);
	const first = await world.start();
	await untilReady(world);
	const pid = unit.pid();
	await first.stop();
	const next = await world.start();
	await untilReady(world);
	t.is(unit.pid(), pid);
	t.is(unit.starts(), 1);
	t.like(next.status(), {state: 'running', version: '1.40.0', restarts: 0});
});

test.serial('unit mode › an Envoy that was started otherwise is ended, and its unit starts the wanted one', async t => {
	const {world, unit} = await makeUnitWorld(t);
	const first = await world.start();
	await untilReady(world);
	const pid = unit.pid();
	await first.stop();
	const next = await world.start({statsPrefixes: ['another']});
	await until('another Envoy', () => unit.pid() !== undefined && unit.pid() !== pid);
	await untilReady(world);
	t.is(next.status().restarts, 0, 'that is no crash');
	t.is(unit.starts(), 2);
});

test.serial('unit mode › a crash is noticed, and the Envoy that follows counts as ready only when it is', async t => {
	const {world, unit} = await makeUnitWorld(t);
	const proxy = await world.start();
	await untilReady(world);
	// Uptimes are differences of whole seconds.
	await until('an uptime to compare', async () => (await proxy.admin.serverInfo()).uptimeSeconds >= 4);
	process.kill(unit.pid()!, 'SIGKILL');
	await until('the crash to be counted', () => proxy.status().restarts === 1);
	await untilReady(world);
	t.is(proxy.status().state, 'running');
});

test.serial('unit mode › after too many ends Envoy is started with a wait, until it has held for a while', async t => {
	const {world, unit} = await makeUnitWorld(t);
	const proxy = await world.start({crashBudget: 0, crashWindowMs: 8000, restartBackoffMaxMs: 1000});
	const isDelayed = () => /^sleep 1$/m.test(readFileSync(unitScriptPath(world.config), 'utf8'));
	await untilReady(world);
	t.false(isDelayed());
	await until('an uptime to compare', async () => (await proxy.admin.serverInfo()).uptimeSeconds >= 4);
	process.kill(unit.pid()!, 'SIGKILL');
	await until('the wait', isDelayed);
	await untilReady(world);
	await until('the end of the wait', () => !isDelayed());
	t.is(unit.starts(), 2, 'the Envoy that runs is not touched');
});

test.serial('unit mode › an Envoy that was drained for an agent that left is not kept', async t => {
	const {world, unit} = await makeUnitWorld(t);
	const first = await world.start();
	await untilReady(world);
	const pid = unit.pid();
	await first.drain();
	t.is(await first.admin.ready(), 'DRAINING');
	t.is(unit.pid(), pid, 'draining does not end it');
	await first.stop();
	await world.start();
	await untilReady(world);
	t.not(unit.pid(), pid);
});
