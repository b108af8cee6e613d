import {rm} from 'node:fs/promises';
import {join} from 'node:path';
import anyTest, {type TestFn} from 'ava';
import type {LocalWorkload} from '../../../src/sandbox/local-workload.ts';
import {
	complaints,
	gateOf,
	listFiles,
	listKept,
	makeWorld,
	processesOf,
	spoken,
	until,
	untilClosed,
	type World,
} from './world.ts';

const test = anyTest as TestFn<{world: World}>;

test.beforeEach(async t => {
	t.context.world = await makeWorld();
});
test.afterEach(t => t.context.world.checkSecrets(t));
test.afterEach.always(t => t.context.world.end());

/** Two seconds are promised; the rest is for a machine that has much to do. */
const inOrderMs = 5000;

async function endsInOrder(workload: LocalWorkload): Promise<{readonly code: number | null; readonly tookMs: number}> {
	const fromMs = performance.now();
	workload.signal('SIGTERM');
	const code = await workload.exit!;
	return {code, tookMs: performance.now() - fromMs};
}

for (const [moment, before] of [
	[
		'at the first line',
		async (workload: LocalWorkload) => until('a line', () => workload.log().includes('onramp starting')),
	],
	[
		'while Envoy starts',
		async (workload: LocalWorkload) => until('envoy', () => workload.log().includes('envoy started')),
	],
	['while it waits for a token', async (workload: LocalWorkload) => untilClosed(workload, 'identity', /^locked out/)],
] as const) {
	test(`faults › signals › SIGTERM ${moment} ends agent and Envoy in order, with 0`, async t => {
		const {world} = t.context;
		const bundle = await world.bundle();
		if (moment.endsWith('token')) await rm(join(bundle, 'istio-token'));
		const workload = await world.workload({bundle});
		workload.start();
		await before(workload);
		const {code, tookMs} = await endsInOrder(workload);
		t.is(code, 0, workload.log());
		t.true(tookMs < inOrderMs, `${Math.round(tookMs)} ms`);
		t.deepEqual(processesOf(workload.options.directory), []);
		t.deepEqual(spoken(workload.log()), [], 'an end that was asked for is no failure');
		t.false(
			(await listFiles(workload.runDir)).some(name => name.endsWith('.sock')),
			'no socket is left',
		);
	});
}

test('faults › signals › SIGTERM while the control plane does not answer ends in order, with 0', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	world.sandbox.faults.stopAnswering();
	const workload = await world.workload({bundle});
	workload.start();
	await workload.until('status', report => !gateOf(report, 'identity').open);
	await until('envoy', () => workload.log().includes('envoy started'));
	const {code, tookMs} = await endsInOrder(workload);
	t.is(code, 0, workload.log());
	t.true(tookMs < inOrderMs, `${Math.round(tookMs)} ms`);
	t.deepEqual(processesOf(workload.options.directory), []);
});

test('faults › signals › SIGTERM when ready takes it out of the mesh first and ends with 0', async t => {
	const {world} = t.context;
	const workload = await world.workload({bundle: await world.bundle()});
	workload.start();
	await workload.untilReady();
	const {code} = await endsInOrder(workload);
	t.is(code, 0);
	t.deepEqual(processesOf(workload.options.directory), []);
	await until('no connection', () => world.sandbox.connections().length === 0);
	t.deepEqual(complaints(workload), []);
});

test('faults › signals › a second SIGTERM ends the agent at once, with 1', async t => {
	const {world} = t.context;
	const workload = await world.workload({
		bundle: await world.bundle(),
		flags: ['--proxy-termination-drain', '60s', '--proxy-drain-ceiling', '60s'],
	});
	workload.start();
	await workload.untilReady();
	workload.signal('SIGTERM');
	await until('stopping', () => workload.log().includes('stopping'));
	const {code, tookMs} = await endsInOrder(workload);
	t.is(code, 1);
	t.true(tookMs < inOrderMs, `${Math.round(tookMs)} ms, of a drain of a minute`);
});

test('faults › signals › after kill -9 the next agent takes over the same Envoy, with the certificate from disk', async t => {
	const {world} = t.context;
	const workload = await world.workload({bundle: await world.bundle()});
	workload.start();
	await workload.untilReady();
	await listKept(workload.stateDir);
	const pid = workload.envoyPid();
	workload.signal('SIGKILL');
	t.is(await workload.exit, null);
	t.is(workload.envoyPid(), pid, 'Envoy goes on without its agent');

	workload.start();
	const {parts} = await workload.untilReady();
	const proxy = parts['proxy'] as {pid: number; adopted: boolean; restarts: number};
	t.deepEqual(
		{pid: proxy.pid, adopted: proxy.adopted, restarts: proxy.restarts},
		{pid: pid!, adopted: true, restarts: 0},
	);
	t.is((parts['identity'] as {origin: string}).origin, 'disk');
	t.is(world.sandbox.counts.issuedByToken, 1, 'nothing was asked for again');
	t.is(await workload.stop(), 0);
	t.deepEqual(processesOf(workload.options.directory), [], 'one that was taken over is ended all the same');
});

test('faults › signals › kill -9 before Envoy is up leaves nothing that keeps the next agent from starting', async t => {
	const {world} = t.context;
	const workload = await world.workload({bundle: await world.bundle()});
	const moments: [string, () => boolean][] = [
		['a first line', () => workload.log().includes('onramp starting')],
		['an Envoy', () => workload.envoyPid() !== undefined],
		['a certificate', () => workload.log().includes('certificate received')],
	];
	for (const [what, hasCome] of moments) {
		workload.start();
		await until(what, hasCome);
		workload.signal('SIGKILL');
		await workload.exit;
	}
	workload.start();
	t.true((await workload.untilReady()).ready);
	t.is(
		processesOf(workload.runDir).filter(({commandLine}) => commandLine.includes('bootstrap.json')).length,
		1,
		'one Envoy',
	);
});
