import {existsSync, readFileSync, statSync} from 'node:fs';
import {createServer} from 'node:http';
import anyTest, {type TestFn} from 'ava';
import {systemClock} from '../../../src/lifecycle/index.ts';
import {type EnvoyProxy, startProxy} from '../../../src/proxy/index.ts';
import {startTimeOf} from '../../../src/proxy/linux-process.ts';
import {makeWorld, until, type World} from './world.ts';

const test = anyTest as TestFn<{world: World}>;

test.beforeEach(async t => {
	t.context.world = await makeWorld();
});
test.afterEach.always(t => t.context.world.end());

const untilReady = ({readiness}: World) =>
	until(
		() => JSON.stringify(readiness.states()),
		() => readiness.isReady,
	);

const get = async (port: number, path: string) => {
	const answer = await fetch(`http://127.0.0.1:${port}${path}`, {headers: {connection: 'close'}});
	return {status: answer.status, text: await answer.text()};
};

test('proxy › starts envoy, opens the gate when it serves, and ends it in order', async t => {
	const {world} = t.context;
	await world.startXds();
	const proxy = await world.start();
	await untilReady(world);
	const {state, pid, version, adopted} = proxy.status();
	t.deepEqual({state, version, adopted}, {state: 'running', version: '1.40.0', adopted: false});
	t.is(statSync(world.config.adminSocketPath).mode & 0o777, 0o600);
	t.is(statSync(world.config.recordPath).mode & 0o777, 0o600);
	await proxy.stop();
	t.is(startTimeOf(pid!), undefined, 'the process is gone');
	t.is(proxy.status().state, 'stopped');
	t.is(proxy.status().lastExit, undefined, 'an end that was asked for is no crash');
});

test('proxy › says what envoy waits for when the control plane has not answered', async t => {
	const {world} = t.context;
	await world.start();
	const [gate] = await until('a reason', () => {
		const states = world.readiness.states();
		return states[0]!.reason.includes('CDS') && states;
	});
	t.false(gate!.isOpen);
	t.is(gate!.reason, 'envoy is PRE_INITIALIZING: waits for its first CDS configuration');
	await world.startXds();
	await untilReady(world);
	t.pass();
});

test('proxy › restarts envoy after kill -9 and keeps how it ended', async t => {
	const {world} = t.context;
	await world.startXds();
	const proxy = await world.start();
	await untilReady(world);
	const {pid} = proxy.status();
	process.kill(pid!, 'SIGKILL');
	await until('another envoy', () => proxy.status().pid !== pid && proxy.status().state === 'running');
	const {restarts, lastExit} = proxy.status();
	t.is(restarts, 1);
	t.is(lastExit!.signal, 'SIGKILL');
	t.true(world.readiness.isReady);
	t.regex(world.deps.metrics.render(), /^onramp_envoy_restarts_total 1$/m);
});

test('proxy › is failed past the crash budget, says why and with which command, and tries on', async t => {
	const {world} = t.context;
	const proxy = await world.start({crashBudget: 2, extraArguments: ['--no-such-argument']});
	await until('failed', () => proxy.status().state === 'failed');
	const [gate] = world.readiness.states();
	t.regex(gate!.reason, /ended with code 1: --no-such-argument -- Couldn't find match.*3 times within 60 s/);
	t.true(gate!.hint!.includes(`${world.config.binaryPath} -c ${world.config.bootstrapPath}`));
	t.is(proxy.status().lastExit!.code, 1);
	const {restarts} = proxy.status();
	await until('another try', () => proxy.status().restarts > restarts);
	t.is(proxy.status().state, 'failed');
});

test('proxy › waits while a port is taken, names the port and who has it, and starts when it is free', async t => {
	const {world} = t.context;
	await world.startXds();
	const squatter = createServer();
	await new Promise<void>(resolve => squatter.listen(world.config.readinessPort, '127.0.0.1', resolve));
	const proxy = await world.start();
	t.is(proxy.status().state, 'waiting');
	const [gate] = world.readiness.states();
	t.true(gate!.reason.includes(`port ${world.config.readinessPort} for readiness is taken by`));
	t.true(gate!.reason.includes(`(pid ${process.pid})`));
	await new Promise(resolve => squatter.close(resolve));
	await untilReady(world);
	t.pass();
});

test('proxy › waits for a missing binary and says how to mend it', async t => {
	const {world} = t.context;
	const proxy = await world.start({binaryPath: '/nonexistent/envoy'});
	t.is(proxy.status().state, 'waiting');
	const [gate] = world.readiness.states();
	t.is(gate!.reason, 'start envoy: there is no /nonexistent/envoy');
	t.truthy(gate!.hint);
});

test('proxy › rotates the log past its size and envoy goes on in the new one', async t => {
	const {world} = t.context;
	await world.startXds();
	const {logPath} = world.config;
	const proxy = await world.start({logMaxBytes: 2000, logLevel: 'debug'});
	await until('the log moved away', () => existsSync(`${logPath}.1`));
	await until('a new log', () => existsSync(logPath) && statSync(logPath).size > 0);
	t.is(proxy.status().restarts, 0);
	t.is(proxy.status().state, 'running');
});

test('proxy › metrics listener shows statistics in use and no other admin page', async t => {
	const {world} = t.context;
	await world.startXds();
	const proxy = await world.start();
	await untilReady(world);
	const {metricsPort} = world.config;
	t.regex((await get(metricsPort, '/stats/prometheus')).text, /^envoy_cluster_manager_cds_update_success\{\} 1$/m);
	t.is((await get(metricsPort, '/config_dump')).status, 404);
	t.is((await get(metricsPort, '/stats/prometheus/../quitquitquit')).status, 404);
	t.regex(await proxy.scrape(), /^envoy_listener_manager_lds_update_success\{\} 1$/m);
});

test('proxy › readiness listener gives the answer of the agent, and of envoy alone while no agent is there', async t => {
	const {world} = t.context;
	await world.startXds();
	let agentStatus = 503;
	const agent = createServer((_request, response) => response.writeHead(agentStatus).end());
	// One address of several: at 127.0.0.1 nobody answers, which would be taken for an agent that is away.
	const statusAddress = '127.0.0.2';
	await new Promise<void>(resolve => agent.listen(0, statusAddress, resolve));
	const statusPort = (agent.address() as {port: number}).port;
	const proxy = await startProxy({...world.deps, statusAddress, statusPort}, new AbortController().signal);
	t.teardown(() => proxy.stop());
	await untilReady(world);
	const ask = async () => (await get(world.config.readinessPort, '/healthz/ready')).status;
	t.is(await ask(), 503, 'the agent is not ready');
	agentStatus = 200;
	t.is(await ask(), 200);
	agent.closeAllConnections();
	await new Promise(resolve => agent.close(resolve));
	t.is(await ask(), 200, 'no agent: envoy speaks for itself');
	await proxy.drain();
	t.is(await ask(), 503, 'draining');
	await proxy.stop();
});

test('proxy › drain closes the gate, keeps envoy running and does not start another', async t => {
	const {world} = t.context;
	await world.startXds();
	const proxy = await world.start();
	await untilReady(world);
	const {pid} = proxy.status();
	await proxy.drain();
	t.is(proxy.status().state, 'draining');
	t.is(await proxy.admin.ready(), 'DRAINING');
	t.false(world.readiness.isReady);
	process.kill(pid!, 'SIGKILL');
	await until('its end noticed', () => proxy.status().pid === undefined);
	await systemClock.sleep(world.config.restartBackoffMaxMs);
	t.is(proxy.status().pid, undefined);
});

test('proxy › external mode writes the bootstrap and watches an envoy it does not run', async t => {
	const {world} = t.context;
	await world.startXds();
	const watch = await world.start({mode: 'external'});
	t.truthy(JSON.parse(readFileSync(world.config.bootstrapPath, 'utf8')));
	t.false(world.readiness.isReady);
	const runner: EnvoyProxy = await startProxy(
		{...world.deps, gate: {open: () => {}, close: () => {}}},
		new AbortController().signal,
	);
	t.teardown(() => runner.stop());
	await untilReady(world);
	await watch.stop();
	t.is(await runner.admin.ready(), 'LIVE', 'it goes on without the watcher');
});
