import {createServer, type Server, type ServerResponse} from 'node:http';
import type {AddressInfo} from 'node:net';
import test, {type ExecutionContext} from 'ava';
import type {StatusReport} from '../../../src/status/index.ts';
import {startLoad} from '../../support/load.ts';
import {assertNoneFailed} from '../../support/loads.ts';
import {type Mesh, type MeshOptions, partsOf, startMesh, until} from '../../support/mesh.ts';

/** What a probe asks; it misbehaves as told. */
class Probed {
	mode: 'well' | 'error' | 'hang' | 'closed' = 'well';
	/** Results by number, over `mode`. */
	script: readonly boolean[] = [];
	asked = 0;
	#server: Server | undefined;
	readonly #hanging = new Set<ServerResponse>();
	port = 0;

	async open(): Promise<void> {
		this.#server = createServer((_, response) => {
			const scripted = this.script[this.asked++];
			if (this.mode === 'hang') this.#hanging.add(response);
			else response.writeHead((scripted ?? this.mode === 'well') ? 200 : 500).end();
		}).listen(this.port, '127.0.0.1');
		await new Promise(resolve => this.#server!.once('listening', resolve));
		this.port = (this.#server.address() as AddressInfo).port;
	}

	async close(): Promise<void> {
		const server = this.#server;
		this.#server = undefined;
		await new Promise(resolve => {
			server?.close(resolve);
			server?.closeAllConnections();
			if (!server) resolve(undefined);
		});
	}

	async become(mode: Probed['mode']): Promise<void> {
		if (mode === 'closed') await this.close();
		else if (this.mode === 'closed') await this.open();
		this.mode = mode;
	}
}

const thresholds = {periodSeconds: 1, timeoutSeconds: 1, failureThreshold: 2, successThreshold: 2};

async function setUp(t: ExecutionContext, options: MeshOptions = {}) {
	const app = new Probed();
	await app.open();
	t.teardown(() => app.close());
	const mesh = await startMesh(t, {
		probes: {vm: {httpGet: {host: '127.0.0.1', port: app.port, path: '/healthz'}, ...thresholds}},
		...options,
	});
	return {app, mesh, vm: mesh.workload('vm')};
}

const entryOf = ({sandbox}: Mesh, name = 'vm') => sandbox.workloadEntries().find(({nodeName}) => nodeName === name);
const conditionOf = (mesh: Mesh) => entryOf(mesh)?.status.conditions[0];
/** Of the vm's health, one for each message. */
const reportsOf = ({sandbox}: Mesh) =>
	sandbox.reports.all.filter(({connection}) => connection.startsWith('vm.')).map(({isHealthy}) => isHealthy);

/** The report that follows a stream is repeated once, some seconds later; after that only changes are told. */
async function untilSettled(mesh: Mesh, count = 2): Promise<void> {
	await until('the repeated report', () => reportsOf(mesh).length >= count);
}

const inboundOf = ({parts}: StatusReport) => parts['inbound'] as {ports: number[]; missing: number[]};

/** The mesh sends it requests, and it has what serves them. */
async function untilServed(mesh: Mesh, name: string): Promise<void> {
	await mesh.workload(name).until('its ports', report => {
		const {ports, missing} = inboundOf(report);
		return ports.length === 2 && missing.length === 0;
	});
}

async function untilHealth(mesh: Mesh, status: 'True' | 'False'): Promise<void> {
	await until(`health ${status}`, () => conditionOf(mesh)?.status === status);
}

test.serial(
	'health › a port that closes, hangs, answers 500: unhealthy after the threshold, healthy again after it, one message each',
	async t => {
		const {app, mesh, vm} = await setUp(t);
		t.is(entryOf(mesh)!.annotations['proxy.istio.io/health-checks-enabled'], 'true');
		t.is(conditionOf(mesh)?.status, 'True');
		await untilSettled(mesh);
		const before = reportsOf(mesh).length;
		const expected: boolean[] = [];
		for (const [mode, message] of [
			['closed', /^readinessProbe: connection refused/],
			['hang', /^readinessProbe: no answer within 1 s$/],
			['error', /^readinessProbe: HTTP status 500$/],
		] as const) {
			await app.become(mode);
			await untilHealth(mesh, 'False');
			t.regex(conditionOf(mesh)!.message!, message);
			const report = await vm.until('unhealthy', each => partsOf(each).health.state === 'unhealthy');
			t.regex(partsOf(report).registration.summary, /^unhealthy: readinessProbe: /);
			t.true(report.ready, 'the agent itself is');
			await app.become('well');
			await untilHealth(mesh, 'True');
			t.is(conditionOf(mesh)!.message, undefined);
			expected.push(false, true);
		}
		t.deepEqual(reportsOf(mesh).slice(before), expected);
	},
);

test.serial('health › an application that flaps below the thresholds is left alone', async t => {
	const {app, mesh} = await setUp(t);
	await untilSettled(mesh);
	const before = reportsOf(mesh).length;
	const [from, flaps] = [
		app.asked,
		[true, false, true, false, true, false, true, true, false, false, true, false, true],
	];
	app.script = [...Array.from({length: from}, () => true), ...flaps];
	await until('all of it', () => app.asked >= from + flaps.length);
	await untilHealth(mesh, 'False');
	app.mode = 'well';
	await untilHealth(mesh, 'True');
	t.deepEqual(
		reportsOf(mesh).slice(before),
		[false, true],
		'twice in a row it failed once, and twice it was well after that',
	);
});

test.serial('health › callers go elsewhere while it is unhealthy, and come back', async t => {
	const {app, mesh} = await setUp(t, {workloads: {cluster: 'cluster', vm: 'vm', other: 'steady'}});
	await untilServed(mesh, 'vm');
	await app.become('closed');
	await mesh.workload('vm').until('no endpoint', report => inboundOf(report).ports.length === 0);
	await app.become('well');
	await untilServed(mesh, 'vm');
	const load = startLoad({port: mesh.port('cluster', 'vm'), perSecond: 40});
	await until('requests', () => load.result().sent > 40);
	assertNoneFailed(t, {'after its return': await load.stop()});
});

test.serial(
	'health › after a restart of the control plane it is right again, changed or not, and so is the registration',
	async t => {
		const {app, mesh, vm} = await setUp(t, {flags: ['--control-plane-backoff-max', '1s']});
		const restart = async (meanwhile: () => Promise<unknown>) => {
			await mesh.sandbox.faults.stop();
			await vm.until('away', report => partsOf(report).registration.state === 'away');
			await meanwhile();
			await mesh.sandbox.faults.restart();
			await vm.until('registered', report => partsOf(report).registration.state === 'registered');
			return performance.now();
		};
		const within5s = (connectedMs: number) => t.true(performance.now() - connectedMs < 5000);
		const unchanged = await restart(async () => {});
		const opened = mesh.sandbox.connections().find(({node}) => node.name === 'vm')!.id;
		await until('its report', () =>
			mesh.sandbox.reports.all.some(({connection, isHealthy}) => connection === opened && isHealthy),
		);
		within5s(unchanged);
		const changed = await restart(async () => {
			await app.become('closed');
			await vm.until('unhealthy', report => partsOf(report).health.state === 'unhealthy');
		});
		await untilHealth(mesh, 'False');
		within5s(changed);
		const back = await restart(async () => {
			await app.become('well');
			await vm.until('healthy', report => partsOf(report).health.state === 'healthy');
		});
		await untilHealth(mesh, 'True');
		within5s(back);
	},
);

for (const [how, probes] of [
	['reported as unhealthy', undefined],
	['not registered', {}],
] as const)
	test.serial(
		`maintenance › ${how}: leaves load balancing, survives a kill of the agent, keeps identity, ends with one word`,
		async t => {
			const {mesh, vm} = await setUp(t, {
				...(probes && {probes}),
				workloads: {cluster: 'cluster', vm: 'vm', other: 'vm'},
				sandbox: {gracePeriodMs: 1000},
			});
			const isIn = () => {
				const entry = entryOf(mesh);
				return entry !== undefined && (probes !== undefined || conditionOf(mesh)?.status === 'True');
			};
			await until('it is in', isIn);
			const {serial} = partsOf(await vm.status()).identity;
			const {pid} = partsOf(await vm.status()).proxy;
			t.like(await vm.command('unready', {reason: 'new disk'}), {
				state: 'unhealthy',
				reason: 'maintenance: new disk',
				isKept: true,
			});
			await until('it is out', () => !isIn());
			vm.signal('SIGKILL');
			await vm.exit;
			vm.start();
			const report = await vm.untilReady();
			t.like(partsOf(report).health, {state: 'unhealthy', reason: 'maintenance: new disk'});
			t.like(partsOf(report).proxy, {pid, adopted: true});
			t.is(partsOf(report).identity.serial, serial);
			t.false(isIn());
			t.like(await vm.command('ready'), {isKept: true});
			await until('it is in again', isIn);
			await untilServed(mesh, 'vm');
			const load = startLoad({port: mesh.port('cluster', 'vm'), perSecond: 40});
			await until('requests', () => load.result().sent > 40);
			assertNoneFailed(t, {'after its return': await load.stop()});
		},
	);

test.serial('stop › is heard of at once where there is health: callers are gone long before the entry is', async t => {
	// Without the report Envoy would be gone nine seconds before the entry.
	const {mesh, vm} = await setUp(t, {
		workloads: {cluster: 'cluster', vm: 'vm', other: 'vm'},
		sandbox: {gracePeriodMs: 10_000},
		flags: ['--proxy-termination-drain', '1s'],
	});
	for (const name of ['vm', 'other']) await untilServed(mesh, name);
	const calls = {
		'http, new connections': startLoad({port: mesh.port('cluster', 'vm'), perSecond: 40}),
		'http, kept connections': startLoad({port: mesh.port('cluster', 'vm'), perSecond: 40, connections: 'kept'}),
		'http, slow answers': startLoad({port: mesh.port('cluster', 'vm'), perSecond: 20, path: '/slow'}),
		'tcp, new connections': startLoad({port: mesh.port('cluster', 'vm', 'tcp'), perSecond: 40}),
	};
	t.teardown(() => Promise.all(Object.values(calls).map(load => load.stop())));
	await until('requests', () => Object.values(calls).every(load => load.result().sent > 40));
	t.is(await vm.stop(), 0);
	t.is(conditionOf(mesh)?.message, 'the agent stops');
	const before = calls['http, new connections'].result().sent;
	await until('more requests', () => calls['http, new connections'].result().sent > before + 40);
	const results = await Promise.all(
		Object.entries(calls).map(async ([name, load]) => [name, await load.stop()] as const),
	);
	assertNoneFailed(t, Object.fromEntries(results));
});
