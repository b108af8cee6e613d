import {type ChildProcess, spawn} from 'node:child_process';
import {once} from 'node:events';
import {existsSync, readFileSync, renameSync, writeFileSync} from 'node:fs';
import {basename, dirname, join} from 'node:path';
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

/** What onramp-envoy@.service and .path do for one of the two: run the script as long as it is there, again and again. */
function startUnit(t: ExecutionContext, config: ProxyConfig, name: 'a' | 'b'): Unit {
	const path = unitScriptPath({name, config});
	let child: ChildProcess | undefined;
	let [starts, isStopped] = [0, false];
	const keep = async (): Promise<void> => {
		while (!isStopped) {
			if (existsSync(path)) {
				child = spawn('/bin/sh', [path], {stdio: 'ignore'});
				starts++;
				await once(child, 'exit');
			}
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

async function makeUnitWorld(t: ExecutionContext, drainMs = 500): Promise<{world: World; unit: Unit; other: Unit}> {
	const world = await makeWorld({mode: 'unit', drainMs});
	const [unit, other] = [startUnit(t, world.config, 'a'), startUnit(t, world.config, 'b')];
	await world.startXds();
	t.teardown(() => world.end());
	return {world, unit, other};
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

test.serial(
	'unit mode › an Envoy that was started otherwise goes on until the other unit has the wanted one',
	async t => {
		const {world, unit, other} = await makeUnitWorld(t);
		const first = await world.start();
		await untilReady(world);
		const pid = unit.pid();
		await first.stop();
		const next = await world.start({statsPrefixes: ['another']});
		await until('another Envoy', () => {
			t.true(unit.pid() === pid || other.pid() !== undefined, 'never without');
			return next.status().retiring !== undefined;
		});
		t.is(next.status().retiring, 'onramp-envoy@a.service');
		await untilReady(world);
		await until('the end of the first', () => unit.pid() === undefined && next.status().retiring === undefined);
		t.is(next.status().restarts, 0, 'that is no crash');
		t.deepEqual([unit.starts(), other.starts()], [1, 1]);
		t.deepEqual(scripts(world), ['start-b']);
		// And back, as after an upgrade of Envoy; the next agent finds what there is.
		await next.replace();
		await until('the end of the second', () => other.pid() === undefined);
		t.deepEqual([unit.starts(), other.starts()], [2, 1]);
		const third = unit.pid();
		await next.stop();
		const last = await world.start({statsPrefixes: ['another']});
		await untilReady(world);
		t.is(unit.pid(), third);
		t.like(last.status(), {adopted: true, retiring: undefined});
	},
);

const scripts = ({config}: World): string[] =>
	(['a', 'b'] as const)
		.map(name => basename(unitScriptPath({name, config})))
		.filter(name => existsSync(join(dirname(config.bootstrapPath), name)));

test.serial('unit mode › a successor that is not up to it is taken away, and nothing has changed', async t => {
	const {world, unit, other} = await makeUnitWorld(t);
	const binaryPath = join(world.folder, 'envoy');
	const install = (script: string) => {
		writeFileSync(binaryPath, `#!/bin/sh\n${script}\n`, {mode: 0o755});
	};
	install(`exec '${world.config.binaryPath}' "$@"`);
	const proxy = await world.start({binaryPath, replaceTimeoutMs: 1500});
	await untilReady(world);
	const pid = unit.pid();
	install('exit 3');
	await t.throwsAsync(proxy.replace(), {message: /not ready within 2 s: /, code: 'proxy.replacement_failed'});
	t.deepEqual(scripts(world), ['start-a']);
	t.is(unit.pid(), pid);
	t.like(proxy.status(), {state: 'running', restarts: 0});
	await until('the other unit to rest', () => other.pid() === undefined);
	// Mended, it works.
	install(`exec '${world.config.binaryPath}' "$@"`);
	await proxy.replace();
	await until('the end of the old one', () => unit.pid() === undefined);
	t.like(proxy.status(), {state: 'running', restarts: 0});
	t.truthy(other.pid());
});

test.serial(
	'unit mode › a successor that is ready only when the agent has left is taken away, and takes no work',
	async t => {
		const {world, unit, other} = await makeUnitWorld(t);
		const binaryPath = join(world.folder, 'envoy');
		const install = (script: string) => writeFileSync(binaryPath, `#!/bin/sh\n${script}\n`, {mode: 0o755});
		install(`exec '${world.config.binaryPath}' "$@"`);
		const proxy = await world.start({binaryPath});
		await untilReady(world);
		const pid = unit.pid();
		install(`sleep 1; exec '${world.config.binaryPath}' "$@"`);
		const replaced = t.throwsAsync(proxy.replace(), {message: /none that serves/, code: 'proxy.replacement_failed'});
		await until('its start', () => other.pid());
		await proxy.drain();
		await replaced;
		t.deepEqual(scripts(world), ['start-a']);
		t.is(unit.pid(), pid);
		await until('the other unit to rest', () => other.pid() === undefined);
	},
);

test.serial('unit mode › an agent that ends in the middle of it leaves the next one able to finish', async t => {
	const {world, unit, other} = await makeUnitWorld(t);
	const first = await world.start();
	await untilReady(world);
	const pid = unit.pid();
	await first.replace();
	await first.stop();
	t.deepEqual(scripts(world), ['start-b']);
	const successor = other.pid();
	t.is(unit.pid(), pid, 'the agent has ended before the old one had');
	const next = await world.start();
	await untilReady(world);
	await until('the end of the old one', () => unit.pid() === undefined);
	t.is(other.pid(), successor);
	t.like(next.status(), {state: 'running', restarts: 0});
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
	const isDelayed = () => /^sleep 1$/m.test(readFileSync(unitScriptPath({name: 'a', config: world.config}), 'utf8'));
	await untilReady(world);
	t.false(isDelayed());
	await until('an uptime to compare', async () => (await proxy.admin.serverInfo()).uptimeSeconds >= 4);
	process.kill(unit.pid()!, 'SIGKILL');
	await until('the wait', isDelayed);
	await untilReady(world);
	await until('the end of the wait', () => !isDelayed());
	t.is(unit.starts(), 2, 'the Envoy that runs is not touched');
});

test.serial('unit mode › an Envoy that ends before it answers is counted, told, and started with a wait', async t => {
	const {world, unit} = await makeUnitWorld(t);
	const binaryPath = join(world.folder, 'broken-envoy');
	const whole = readFileSync(world.config.binaryPath);
	writeFileSync(binaryPath, '#!/bin/sh\necho cannot bind the universe >&2\nexit 1\n', {mode: 0o755});
	const config = {binaryPath, crashBudget: 2, crashWindowMs: 60_000, restartBackoffMaxMs: 3000};
	const proxy = await world.start(config);
	await until(
		'the wait',
		() => /^sleep 3$/m.test(readFileSync(unitScriptPath({name: 'a', config: world.config}), 'utf8')),
		60_000,
	);
	const {state, restarts, lastExit} = proxy.status();
	t.is(state, 'failed');
	t.true(restarts >= 3, String(restarts));
	t.regex(String(lastExit?.logTail), /cannot bind the universe/);
	t.false(world.readiness.isReady);
	const [from, fromMs] = [unit.starts(), performance.now()];
	await until('two more starts', () => unit.starts() >= from + 2, 60_000);
	t.true(performance.now() - fromMs > 2500, 'not ten a second');

	writeFileSync(`${binaryPath}.new`, whole, {mode: 0o755});
	renameSync(`${binaryPath}.new`, binaryPath);
	await untilReady(world);
	t.is(proxy.status().state, 'running', 'a mended one is taken as any other');
});

test.serial('unit mode › an Envoy that was drained for an agent that left is not kept', async t => {
	const {world, unit, other} = await makeUnitWorld(t);
	const first = await world.start();
	await untilReady(world);
	const pid = unit.pid();
	await first.drain();
	t.is(await first.admin.ready(), 'DRAINING');
	t.is(unit.pid(), pid, 'draining does not end it');
	await first.stop();
	const next = await world.start();
	await until('another to serve', () => next.status().state === 'running' && other.pid() !== undefined);
	await until('the end of the drained one', () => unit.pid() === undefined);
});

test.serial('unit mode › the replaced Envoy is seen out also by an agent that finds no other', async t => {
	const {world, unit, other} = await makeUnitWorld(t, 4000);
	const binaryPath = join(world.folder, 'envoy');
	const install = (script: string) => writeFileSync(binaryPath, `#!/bin/sh\n${script}\n`, {mode: 0o755});
	install(`exec '${world.config.binaryPath}' "$@"`);
	const first = await world.start({binaryPath});
	await untilReady(world);
	const [old, starts] = [unit.pid(), unit.starts()];
	await first.replace();
	await first.stop();
	// Its unit starts it again; the agent is there first.
	install(`sleep 1; exec '${world.config.binaryPath}' "$@"`);
	process.kill(other.pid()!, 'SIGKILL');
	await until('its end', async () => (await first.admin.ready().catch(() => undefined)) === undefined);
	t.is(unit.pid(), old, 'the replaced one is still on its way out');

	const next = await world.start({binaryPath});
	await until('the end of the replaced one', () => unit.pid() === undefined && next.status().retiring === undefined);
	await untilReady(world);
	t.truthy(other.pid());
	t.like(next.status(), {state: 'running', restarts: 0});
	t.is(unit.starts(), starts);
});

test.serial(
	'unit mode › an Envoy that has closed its listeners is replaced, though it says that it is LIVE',
	async t => {
		const {world, unit, other} = await makeUnitWorld(t);
		const proxy = await world.start();
		await untilReady(world);
		await proxy.admin.post('/drain_listeners');
		await until('another to serve', () => other.pid() !== undefined && proxy.status().retiring !== undefined);
		await until('the end of the closed one', () => unit.pid() === undefined);
		await untilReady(world);
		t.like(proxy.status(), {state: 'running', restarts: 0});
	},
);
