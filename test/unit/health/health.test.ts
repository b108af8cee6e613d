import {mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import type {HealthConfig} from '../../../src/config/index.ts';
import {keepWord, startHealth, type Word, type WordKeeper} from '../../../src/health/index.ts';
import type {ProbeStatus} from '../../../src/health/prober.ts';
import {Metrics, never, Readiness} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {FakeClock} from '../../support/fake-clock.ts';

const config: HealthConfig = {
	mode: 'auto',
	isReported: true,
	probes: [],
	defaultHost: 'address',
	reassertMs: 600_000,
	stateDir: '/nowhere',
};

interface Options {
	readonly isComing?: () => boolean;
	readonly config?: Partial<HealthConfig>;
	readonly probes?: readonly string[];
	readonly word?: Word;
	readonly hasEntry?: boolean;
	readonly isEnded?: boolean;
	readonly save?: WordKeeper['save'];
	readonly untilLeft?: (signal: AbortSignal) => Promise<void>;
}

async function setUp(t: ExecutionContext, options: Options = {}) {
	const clock = new FakeClock();
	const readiness = new Readiness(['proxy'], () => clock.now());
	const gate = readiness.gate('proxy');
	const reports: string[] = [];
	const calls: string[] = [];
	const verdicts = new Map<string, ProbeStatus>();
	let onResult = (_name: string, _isPassing: boolean) => {};
	let connected = () => {};
	const health = await startHealth({
		config: {...config, ...options.config},
		hasEntry: options.hasEntry ?? true,
		trafficGate: () => ({...readiness.states()[0]!, isComing: options.isComing?.() ?? false}),
		onGateChange: listener => readiness.onChange(listener),
		report: ({isHealthy, message}) => reports.push(isHealthy ? 'healthy' : `unhealthy: ${message}`),
		onWithheld: () => calls.push(`withheld: ${health.withheld() ?? 'no'}`),
		onChange: () => {},
		onConnected: listener => {
			connected = listener;
			return () => {};
		},
		untilLeft: options.untilLeft ?? (async () => {}),
		onLeaving: () => calls.push('leaving'),
		isEnded: options.isEnded ?? true,
		keeper: {load: async () => options.word, save: options.save ?? (async () => {})},
		startProbers: async listener => {
			onResult = listener;
			return (options.probes ?? ['web']).map(name => {
				verdicts.set(name, {
					name,
					check: 'tcp',
					verdict: 'unknown',
					streak: 0,
					failure: undefined,
					lastAt: undefined,
					tookMs: 0,
				});
				return {status: () => verdicts.get(name)!, finished: never, stop: async () => {}};
			});
		},
		clock,
		random: () => 0.5,
		metrics: new Metrics(),
		log: silentLogger,
	});
	t.teardown(() => health.stop());
	const probe = (verdict: ProbeStatus['verdict'], failure?: string, name = 'web') => {
		verdicts.set(name, {...verdicts.get(name)!, verdict, failure});
		onResult(name, failure === undefined);
	};
	return {clock, gate, health, reports, calls, probe, connect: () => connected()};
}

test('health › each change is told once, with its reason; nothing is told before anything is known', async t => {
	const {gate, health, reports, probe} = await setUp(t);
	t.like(health.status(), {state: 'unknown', reason: 'waiting for Envoy, web', told: undefined});
	gate.open();
	t.deepEqual(reports, []);
	probe('healthy');
	probe('healthy');
	probe('healthy', 'one failure is no verdict');
	t.deepEqual(reports, ['healthy']);
	probe('unhealthy', 'HTTP status 500');
	probe('unhealthy', 'connection refused');
	t.deepEqual(reports, ['healthy', 'unhealthy: web: HTTP status 500']);
	t.like(health.status(), {state: 'unhealthy', reason: 'web: connection refused'}, 'the status has the latest reason');
	probe('healthy');
	t.deepEqual(reports.slice(2), ['healthy']);
});

test('health › what only waits to be put in is neither well nor unwell, however long it takes; what has failed is', async t => {
	let isComing = true;
	const {clock, gate, health, reports, probe} = await setUp(t, {isComing: () => isComing});
	gate.close('on trial');
	probe('healthy');
	await clock.advance(60_000);
	t.is(health.status().state, 'unknown');
	gate.open();
	gate.close('on trial once more');
	await clock.advance(60_000);
	t.deepEqual(reports, ['healthy'], 'what was known goes on to be so');
	isComing = false;
	gate.close('failed');
	t.is(reports.length, 2);
});

test('health › after an Envoy that took long, what waits to be put in does not make it well', async t => {
	let isComing = false;
	const {clock, gate, reports, probe} = await setUp(t, {isComing: () => isComing});
	probe('healthy');
	gate.close('envoy waits for a cluster');
	await clock.advance(60_000);
	t.is(reports.length, 1, 'that it is not there');
	// Envoy is there now, and the rules are not.
	isComing = true;
	gate.close('the rules are on trial');
	await clock.advance(1000);
	t.is(reports.length, 1);
	gate.open();
	t.deepEqual(reports.slice(1), ['healthy']);
});

test('health › an Envoy that is restarted is not told; one that stays away is, and when it is back', async t => {
	const {clock, gate, reports, probe} = await setUp(t);
	gate.open();
	probe('healthy');
	gate.close('it is started again');
	await clock.advance(2999);
	gate.open();
	await clock.advance(10_000);
	t.deepEqual(reports, ['healthy']);
	gate.close('backing off');
	await clock.advance(1500);
	gate.close('failed');
	await clock.advance(1500);
	t.deepEqual(reports.slice(1), ['unhealthy: Envoy is not ready: failed']);
	gate.open();
	t.deepEqual(reports.slice(2), ['healthy']);
});

test('health › is told again soon after each connect, and now and then', async t => {
	const {clock, gate, reports, probe, connect} = await setUp(t);
	gate.open();
	connect();
	await clock.advance(5000);
	t.deepEqual(reports, [], 'not before there is something to tell');
	probe('healthy');
	await clock.advance(1000);
	connect();
	await clock.advance(2249);
	t.deepEqual(reports, ['healthy']);
	await clock.advance(1);
	t.deepEqual(reports, ['healthy', 'healthy']);
	await clock.advance(599_999);
	t.is(reports.length, 2);
	await clock.advance(1);
	t.is(reports.length, 3);
	probe('unhealthy', 'HTTP status 500');
	probe('unhealthy', 'HTTP status 503');
	await clock.advance(600_000);
	t.deepEqual(reports.slice(3), ['unhealthy: web: HTTP status 500', 'unhealthy: web: HTTP status 503']);
});

test('health › maintenance overrules probes until it is over', async t => {
	const {gate, health, reports, probe, calls} = await setUp(t);
	gate.open();
	probe('healthy');
	t.like(await health.say('unready', {reason: 'new disk'}), {state: 'unhealthy', by: 'report', isKept: true});
	probe('healthy');
	t.deepEqual(reports, ['healthy', 'unhealthy: maintenance: new disk']);
	t.like(await health.say('ready', {}), {state: 'healthy', by: 'report'});
	t.deepEqual(reports.slice(2), ['healthy']);
	t.deepEqual(calls, [], 'the registration stays as it is');
});

test('health › maintenance survives a restart of the agent', async t => {
	const word = {said: 'unready', reason: 'new disk', at: new Date(0)} as const;
	const {gate, health, reports, probe} = await setUp(t, {word});
	gate.open();
	probe('healthy');
	t.deepEqual(reports, ['unhealthy: maintenance: new disk']);
	t.like(health.status(), {state: 'unhealthy', said: {...word, isKept: true}});
});

test('health › a full disk keeps nobody in the mesh, and is told', async t => {
	const save = async () => {
		throw Object.assign(new Error('no space left on device'), {code: 'ENOSPC'});
	};
	const {gate, health, reports, probe} = await setUp(t, {save});
	gate.open();
	probe('healthy');
	const answer = await health.say('unready', {});
	t.like(answer, {state: 'unhealthy', isKept: false, problem: 'not kept over a restart: no space left on device'});
	t.deepEqual(reports, ['healthy', 'unhealthy: maintenance']);
});

test('health › where entries have no health, maintenance is told by a stream that registers nothing', async t => {
	const {gate, health, reports, calls} = await setUp(t, {config: {isReported: false}, probes: []});
	gate.open();
	t.is(health.withheld(), undefined);
	t.like(await health.say('unready', {reason: 'new disk'}), {by: 'registration', state: 'unhealthy'});
	t.is(health.withheld(), 'maintenance: new disk');
	t.like(await health.say('ready', undefined), {by: 'registration', state: 'healthy'});
	t.deepEqual([reports, calls], [[], ['withheld: maintenance: new disk', 'withheld: no']]);
});

test('health › a machine that is not registered says so', async t => {
	const {health, calls} = await setUp(t, {config: {isReported: false}, hasEntry: false});
	t.like(await health.say('unready', {}), {by: 'nothing'});
	t.deepEqual(calls, []);
});

test('health › manual: unhealthy until the application says that it is ready', async t => {
	const {gate, health, reports} = await setUp(t, {config: {mode: 'manual'}, probes: []});
	gate.open();
	t.deepEqual(reports, ['unhealthy: the application has not said that it is ready']);
	await health.say('ready', {});
	t.deepEqual(reports.slice(1), ['healthy']);
});

for (const reason of ['two\nlines', 'x'.repeat(201), 5, '\x1b[2J'])
	test(`health › a reason such as ${JSON.stringify(reason).slice(0, 20)} is refused, and nothing changes`, async t => {
		const {health, reports} = await setUp(t);
		await t.throwsAsync(health.say('unready', {reason}), {code: 'cli.usage'} as never);
		t.deepEqual(reports, []);
	});

test('health › a stop says so first, and gives the word time to spread', async t => {
	let left = () => {};
	const {clock, gate, health, reports, probe, calls} = await setUp(t, {
		untilLeft: () =>
			new Promise(resolve => {
				left = resolve;
			}),
	});
	gate.open();
	probe('healthy');
	let isStopped = false;
	const stopped = health.stop().then(() => {
		isStopped = true;
	});
	await clock.advance(1999);
	t.deepEqual([reports, calls], [['healthy', 'unhealthy: the agent stops'], ['leaving']]);
	t.false(isStopped);
	left();
	await stopped;
	probe('healthy');
	t.is(reports.length, 2);
});

test('health › a stop waits no longer than two seconds for the word', async t => {
	const {clock, gate, health, probe} = await setUp(t, {untilLeft: () => never});
	gate.open();
	probe('healthy');
	const stopped = health.stop();
	await clock.advance(2000);
	await stopped;
	t.pass();
});

test('health › a stop that leaves Envoy to the next agent tells nobody', async t => {
	const {gate, health, reports, probe} = await setUp(t, {isEnded: false});
	gate.open();
	probe('healthy');
	await health.stop();
	t.deepEqual(reports, ['healthy']);
});

function directory(t: ExecutionContext): string {
	const path = mkdtempSync(join(tmpdir(), 'onramp-said-'));
	t.teardown(() => rmSync(path, {recursive: true}));
	return join(path, 'health');
}
const at = new Date('2030-01-01T00:00:00Z');

test('word › is kept for nobody else to read or write', async t => {
	const path = directory(t);
	t.is(await keepWord(path).load(), undefined);
	for (const said of ['unready', 'ready'] as const) {
		await keepWord(path).save({said, reason: 'new disk', at});
		t.deepEqual(await keepWord(path).load(), {said, reason: 'new disk', at});
	}
	t.is(statSync(join(path, 'said.json')).mode & 0o777, 0o600);
	t.is(statSync(path).mode & 0o777, 0o700);
});

test('word › that the application is ready is forgotten with a reboot, maintenance is not', async t => {
	const path = directory(t);
	const file = join(path, 'said.json');
	for (const said of ['unready', 'ready'] as const) {
		await keepWord(path).save({said, reason: '', at});
		writeFileSync(file, readFileSync(file, 'utf8').replace(/"bootId":"[^"]+"/, '"bootId":"of-another-boot"'));
		t.is((await keepWord(path).load())?.said, said === 'unready' ? 'unready' : undefined);
	}
});

for (const [what, content] of [
	['cut short', '{"format":1,"boo'],
	['empty', ''],
	['of a later version', '{"format":2,"word":{"said":"ready"}}'],
	['something else', '{"format":1,"word":{"said":"perhaps","reason":"","at":""}}'],
	['not even close', '[]'],
] as const)
	test(`word › one that is ${what} counts as maintenance, and says so`, async t => {
		const path = directory(t);
		mkdirSync(path);
		writeFileSync(join(path, 'said.json'), content);
		const word = await keepWord(path).load();
		t.is(word?.said, 'unready');
		t.regex(word!.reason, /^what was said last cannot be read \(.*said\.json: /);
		await keepWord(path).save({said: 'ready', reason: '', at});
		t.is((await keepWord(path).load())?.said, 'ready', 'and is replaced by what is said next');
	});
