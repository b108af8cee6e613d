import {copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {rootCertificates} from 'node:tls';
import test, {type ExecutionContext} from 'ava';
import {AgentError} from '../../../src/errors.ts';
import {typeUrl} from '../../../src/proto/types.ts';
import {FieldWriter} from '../../../src/proto/wire.ts';
import {versionOf} from '../../../src/relay/cache.ts';
import type {RelayDeps} from '../../../src/relay/index.ts';
import {type FakeEnvoy, type FakeUpstreamStream, settle, until} from '../../support/fake-ads.ts';
import {edsCluster, type Resource, relayConfig, resource, setUpRelay} from '../../support/relay.ts';

const {cluster: cds, endpoint: eds, listener: lds, route: rds, proxyConfig: pcds} = typeUrl;

const owner = 'vm as cluster.local/ns/apps/sa/vm in Kubernetes';

const away = () => new AgentError('control_plane.unreachable', 'connect to istiod: refused');

async function temporaryDir(t: ExecutionContext): Promise<string> {
	const dir = await mkdtemp(join(tmpdir(), 'onramp-snapshot-'));
	t.teardown(() => rm(dir, {recursive: true, force: true}));
	return join(dir, 'relay');
}

/** An agent's relay on a state directory. */
function boot(t: ExecutionContext, dir: string, change: Partial<RelayDeps> = {}) {
	const agent = setUpRelay({config: {...relayConfig, isProxyConfigWanted: true, snapshotDir: dir}, owner, ...change});
	t.teardown(() => agent.relay.stop());
	return {...agent, reason: () => agent.readiness.states()[0]?.reason};
}

type Agent = ReturnType<typeof boot>;

interface Mesh {
	clusters: Resource[];
	endpoints: Resource[];
	listeners: Resource[];
	routes: Resource[];
}

const small: Mesh = {
	clusters: [edsCluster('out|80'), resource(cds, 'static')],
	endpoints: [resource(eds, 'out|80', '10.0.0.1')],
	listeners: [resource(lds, '0.0.0.0_80')],
	routes: [resource(rds, '80')],
};

/** Takes what comes until it has asked for and got everything. */
async function take(envoy: FakeEnvoy, url: string, number: number) {
	const response = await envoy.response(url, number);
	envoy.answer(response);
	return new Map(response.resources.map(({name, any}) => [name, any]));
}

/** An agent that has been given all, and whose Envoy has taken it. */
async function settled(t: ExecutionContext, dir: string, mesh: Mesh, change: Partial<RelayDeps> = {}) {
	const agent = boot(t, dir, change);
	const {upstream, connect, relay} = agent;
	relay.begin();
	const envoy = connect();
	envoy.ask(cds);
	envoy.ask(lds);
	const stream = await upstream.stream(1);
	await until('the requests', () => stream.of(lds).length > 0);
	stream.send(cds, mesh.clusters);
	await take(envoy, cds, 1);
	envoy.ask(eds, ['out|80']);
	stream.send(eds, mesh.endpoints);
	await take(envoy, eds, 1);
	stream.send(lds, mesh.listeners);
	await take(envoy, lds, 1);
	envoy.ask(rds, ['80']);
	await until('the route to be asked for', () => stream.of(rds).length > 0);
	stream.send(rds, mesh.routes);
	await take(envoy, rds, 1);
	await settle();
	return {...agent, envoy, stream};
}

async function untilSaved({relay, clock}: Pick<Agent, 'relay' | 'clock'>, after?: Date): Promise<Date> {
	await clock.advance(2000);
	return until('the snapshot', () => {
		const at = relay.status().snapshot?.savedAt;
		return at && at.getTime() !== after?.getTime() ? at : undefined;
	});
}

/** What a new Envoy is given by an agent that boots without control plane. */
async function bootAlone(t: ExecutionContext, dir: string, change: Partial<RelayDeps> = {}) {
	const agent = boot(t, dir, change);
	agent.upstream.refuse = away;
	agent.relay.begin();
	await agent.clock.advance(0);
	const envoy = agent.connect();
	envoy.ask(cds);
	envoy.ask(lds);
	return {...agent, envoy};
}

const asMap = (resources: readonly Resource[]) => new Map(resources);

test('snapshot › an agent that boots without control plane serves what the last one’s Envoy had taken, byte for byte', async t => {
	const dir = await temporaryDir(t);
	const first = await settled(t, dir, small);
	const savedAt = await untilSaved(first);
	await first.relay.stop();

	await writeFile(join(dir, '.onramp-tmp-1-of-an-agent-that-was-killed'), 'half');
	const {envoy, readiness, relay, reason} = await bootAlone(t, dir);
	t.deepEqual(await take(envoy, cds, 1), asMap(small.clusters));
	envoy.ask(eds, ['out|80']);
	t.deepEqual(await take(envoy, eds, 1), asMap(small.endpoints));
	t.deepEqual(await take(envoy, lds, 1), asMap(small.listeners));
	envoy.ask(rds, ['80']);
	t.deepEqual(await take(envoy, rds, 1), asMap(small.routes));
	t.true(readiness.isReady);
	t.is(reason(), `as saved ${relay.status().servingSaved?.toISOString()}; connect to istiod: refused`);
	t.true(relay.status().servingSaved!.getTime() >= savedAt.getTime());
	t.deepEqual((await readdir(dir)).toSorted(), ['base', 'recent', 'seal.key']);
	const {mode} = await stat(join(dir, 'base'));
	t.is(mode & 0o777, 0o600);
});

test('snapshot › when the control plane returns, only the differences reach Envoy', async t => {
	const dir = await temporaryDir(t);
	await (await settled(t, dir, small)).relay.stop();
	const {envoy, upstream, relay, clock, reason} = await bootAlone(t, dir);
	await take(envoy, cds, 1);
	envoy.ask(eds, ['out|80']);
	await take(envoy, eds, 1);
	await take(envoy, lds, 1);
	upstream.refuse = undefined;
	await clock.advance(2000);
	const stream = await upstream.stream(1);
	t.true(
		stream.of(eds).some(({subscribe}) => subscribe.includes('out|80')),
		'endpoints are asked for with the first requests',
	);
	const same = stream.send(cds, [edsCluster('out|80'), resource(cds, 'new')]);
	const change = await envoy.response(cds, 2);
	t.deepEqual(
		change.resources.map(({name}) => name),
		['new'],
	);
	t.deepEqual(change.removed, ['static']);
	envoy.answer(change);
	await stream.answerTo(same);
	const unchanged = stream.send(lds, small.listeners);
	await stream.answerTo(unchanged);
	const endpoints = stream.send(eds, small.endpoints);
	await stream.answerTo(endpoints);
	t.is(envoy.of(lds).length, 1);
	t.is(envoy.of(eds).length, 1);
	t.is(relay.status().servingSaved, undefined);
	t.is(reason(), 'configuration received');
});

test('snapshot › an Envoy that has a state of its own gets nothing older in its place', async t => {
	const dir = await temporaryDir(t);
	await (await settled(t, dir, small)).relay.stop();
	const agent = boot(t, dir);
	agent.upstream.refuse = away;
	agent.relay.begin();
	const envoy = agent.connect();
	const newer = edsCluster('out|80', 'newer');
	const endpoint = resource(eds, 'out|80', '10.0.0.2');
	envoy.ask(cds, [], {'out|80': versionOf(newer[1], ''), later: 'x'});
	envoy.ask(eds, ['out|80', 'later'], {'out|80': versionOf(endpoint[1], '')});
	envoy.ask(lds, [], {'0.0.0.0_80': versionOf(small.listeners[0]![1], '')});
	await agent.clock.advance(0);
	await until('the saved state', () => agent.relay.status().servingSaved);
	await settle();
	t.deepEqual(envoy.responses, []);
	t.true(agent.readiness.isReady, 'Envoy serves what it has');

	agent.upstream.refuse = undefined;
	await agent.clock.advance(2000);
	const stream = await agent.upstream.stream(1);
	stream.send(cds, [newer]);
	const clusters = await envoy.response(cds, 1);
	t.deepEqual([clusters.resources.length, clusters.removed], [0, ['later']]);
	envoy.answer(clusters);
	// The control plane confirms what was saved: now it is newer than what Envoy has.
	stream.send(eds, small.endpoints);
	t.deepEqual(await take(envoy, eds, 1), asMap(small.endpoints));
});

test('snapshot › is left alone when the control plane answers in time, and is used when it stays silent', async t => {
	const dir = await temporaryDir(t);
	await (await settled(t, dir, small)).relay.stop();
	const answered = boot(t, dir);
	answered.relay.begin();
	const envoy = answered.connect();
	envoy.ask(cds);
	envoy.ask(lds);
	const stream = await answered.upstream.stream(1);
	await until('the requests', () => stream.of(lds).length > 0);
	stream.send(cds, [resource(cds, 'fresh')]);
	t.deepEqual([...(await take(envoy, cds, 1)).keys()], ['fresh']);
	stream.send(lds, []);
	await take(envoy, lds, 1);
	await answered.clock.advance(5000);
	t.is(answered.relay.status().servingSaved, undefined);
	await answered.relay.stop();

	const silent = boot(t, dir);
	silent.relay.begin();
	await silent.clock.advance(999);
	t.is(silent.relay.status().servingSaved, undefined);
	await silent.clock.advance(1);
	await until('the saved state', () => silent.relay.status().servingSaved);
	t.regex(silent.reason() ?? '', /^as saved .*; the control plane has not answered yet$/);
});

test('snapshot › a control plane that has begun to answer is not mixed with what was saved', async t => {
	const dir = await temporaryDir(t);
	await (await settled(t, dir, small)).relay.stop();
	const agent = boot(t, dir);
	agent.relay.begin();
	const envoy = agent.connect();
	envoy.ask(cds);
	envoy.ask(lds);
	const stream = await agent.upstream.stream(1);
	await until('the requests', () => stream.of(lds).length > 0);
	const newer = edsCluster('out|80', 'newer');
	stream.send(cds, [newer]);
	t.deepEqual(await take(envoy, cds, 1), asMap([newer]));
	// The listeners are late.
	await agent.clock.advance(5000);
	t.is(agent.relay.status().servingSaved, undefined);
	t.is(envoy.of(cds).length, 1, 'what is newer stays');
	t.deepEqual(envoy.of(lds), []);
	stream.send(lds, small.listeners);
	t.deepEqual(await take(envoy, lds, 1), asMap(small.listeners));
});

test('snapshot › a control plane that says no is not overruled', async t => {
	const dir = await temporaryDir(t);
	await (await settled(t, dir, small)).relay.stop();
	const agent = boot(t, dir);
	agent.upstream.refuse = () => new AgentError('control_plane.group_missing', 'no such group');
	agent.relay.begin();
	await agent.clock.advance(5000);
	t.is(agent.relay.status().servingSaved, undefined);
	t.false(agent.readiness.isReady);
});

test('snapshot › a small change is a small file over the large one', async t => {
	const dir = await temporaryDir(t);
	const many = Array.from({length: 300}, (_, i) => resource(cds, `c${i}`, 'x'.repeat(100)));
	const first = await settled(t, dir, {...small, clusters: [...small.clusters, ...many]});
	const savedAt = await untilSaved(first);
	const base = await readFile(join(dir, 'base'));
	first.stream.send(cds, [resource(cds, 'c1', 'other')], ['c2']);
	await take(first.envoy, cds, 2);
	await untilSaved(first, savedAt);
	t.deepEqual(await readFile(join(dir, 'base')), base);
	t.true((await stat(join(dir, 'recent'))).size < 1000);
	await first.relay.stop();

	const {envoy, relay} = await bootAlone(t, dir);
	const clusters = await take(envoy, cds, 1);
	t.deepEqual(clusters.get('c1'), resource(cds, 'c1', 'other')[1]);
	t.false(clusters.has('c2'));
	t.is(clusters.size, small.clusters.length + 299);
	await relay.stop();

	// Left by a power cut between the two: it belongs to another base.
	const elsewhere = await temporaryDir(t);
	await (await settled(t, elsewhere, small)).relay.stop();
	await copyFile(join(elsewhere, 'base'), join(dir, 'base'));
	await copyFile(join(elsewhere, 'seal.key'), join(dir, 'seal.key'));
	const second = await bootAlone(t, dir);
	t.is((await take(second.envoy, cds, 1)).size, small.clusters.length);
});

test('snapshot › a large answer is saved as it came, as long as all of it holds', async t => {
	const dir = await temporaryDir(t);
	const version = (count: number, content: string) =>
		Array.from({length: count}, (_, i) => resource(cds, `c${i}`, content.repeat(200)));
	const first = await settled(t, dir, {...small, clusters: [...small.clusters, ...version(600, 'x')]});
	const savedAt = await untilSaved(first);
	const base = await readFile(join(dir, 'base'));
	// The first nonce of the control plane, which is in nothing that is made here.
	t.true(base.includes('up-1'));

	const nonce = first.stream.send(cds, version(500, 'y'));
	await take(first.envoy, cds, 2);
	await untilSaved(first, savedAt);
	await first.relay.stop();
	const next = await readFile(join(dir, 'base'));
	t.true(next.includes(nonce));
	t.false(next.includes('up-1'), 'what has been replaced since is not written');

	const {envoy} = await bootAlone(t, dir);
	const expected = asMap([...small.clusters, ...version(600, 'x'), ...version(500, 'y')]);
	const taken = await take(envoy, cds, 1);
	t.is(taken.size, expected.size);
	for (const [name, any] of expected) t.deepEqual(taken.get(name), any);
});

test('snapshot › keeps what Envoy took before, of what it refuses now', async t => {
	const dir = await temporaryDir(t);
	const first = await settled(t, dir, small);
	const savedAt = await untilSaved(first);
	const refuse = async (resources: readonly Resource[], number: number) => {
		first.stream.send(lds, resources);
		const response = await first.envoy.response(lds, number);
		first.envoy.answer(response, {code: 13, message: 'listener 0.0.0.0_80: no such filter'});
		await settle();
	};
	await refuse([resource(lds, '0.0.0.0_80', 'bad')], 2);
	const after = await untilSaved(first, savedAt);
	await first.relay.stop();
	const second = await bootAlone(t, dir);
	t.deepEqual(await take(second.envoy, lds, 1), asMap(small.listeners));
	await second.relay.stop();

	// The same when everything is written anew.
	const third = await settled(t, dir, {...small, listeners: [...small.listeners, resource(lds, 'second')]});
	await untilSaved(third, after);
	third.stream.send(lds, [resource(lds, '0.0.0.0_80', 'bad'), resource(lds, 'second', 'x'.repeat(5000))]);
	third.envoy.answer(await third.envoy.response(lds, 2), {code: 13, message: 'listener 0.0.0.0_80: no such filter'});
	await settle();
	await third.relay.stop();
	const fourth = await bootAlone(t, dir);
	const listeners = await take(fourth.envoy, lds, 1);
	t.deepEqual(listeners.get('0.0.0.0_80'), small.listeners[0]![1]);
	t.deepEqual(listeners.get('second'), resource(lds, 'second', 'x'.repeat(5000))[1]);
});

test('snapshot › the mesh’s roots come back with it', async t => {
	const dir = await temporaryDir(t);
	const pem = rootCertificates[0]!;
	const any = new FieldWriter().string(1, pcds).bytes(2, new FieldWriter().string(34, pem).finish()).finish();
	const first = await settled(t, dir, small);
	first.stream.send(pcds, [['', any]]);
	await settle();
	await first.relay.stop();
	const seen: (readonly string[])[] = [];
	const {relay} = await bootAlone(t, dir, {onTrustBundle: roots => seen.push(roots)});
	await until('the saved state', () => relay.status().servingSaved);
	t.deepEqual(seen, [[pem]]);
});

test('snapshot › of the mesh’s roots, the latest come back', async t => {
	const dir = await temporaryDir(t);
	const [old, added] = rootCertificates as [string, string];
	const anyOfRoots = (...roots: string[]) =>
		new FieldWriter().string(1, pcds).bytes(2, new FieldWriter().strings(34, roots).finish()).finish();
	const large = {...small, listeners: [...small.listeners, resource(lds, 'large', 'x'.repeat(5000))]};
	const first = await settled(t, dir, large);
	first.stream.send(pcds, [['', anyOfRoots(old)]]);
	const at = await untilSaved(first);
	// Small beside the rest, so it is saved as a change of what is there.
	first.stream.send(pcds, [['', anyOfRoots(old, added)]]);
	await settle();
	await untilSaved(first, at);
	t.true((await readdir(dir)).includes('recent'));
	await first.relay.stop();
	const seen: (readonly string[])[] = [];
	const {relay} = await bootAlone(t, dir, {onTrustBundle: roots => seen.push(roots)});
	await until('the saved state', () => relay.status().servingSaved);
	t.deepEqual(seen, [[old, added]]);
});

/** Whether an agent that boots alone uses what is there, and what it says if not. */
async function verdict(t: ExecutionContext, dir: string, change: Partial<RelayDeps> = {}): Promise<string | undefined> {
	const {relay} = await bootAlone(t, dir, change);
	const outcome = await until('a verdict', () => {
		const {servingSaved, snapshot} = relay.status();
		return servingSaved ? 'used' : snapshot?.problem;
	});
	await relay.stop();
	return outcome;
}

test('snapshot › cut off at any place, or with any byte changed, it is refused and put aside, and never half used', async t => {
	const dir = await temporaryDir(t);
	await (await settled(t, dir, small)).relay.stop();
	const path = join(dir, 'base');
	const whole = await readFile(path);
	const damaged = [
		...Array.from({length: 12}, (_, i) => whole.subarray(0, Math.floor((whole.length * i) / 12))),
		...Array.from({length: 24}, (_, i) => {
			const copy = Buffer.from(whole);
			const at = Math.floor((copy.length * i) / 24);
			copy[at] = copy[at]! ^ 0x10;
			return copy;
		}),
		Buffer.concat([whole, Buffer.from([0])]),
	];
	for (const bytes of damaged) {
		await writeFile(path, bytes);
		t.regex((await verdict(t, dir)) ?? '', /what was saved is not used: .*base (is|was) /);
		t.true((await readdir(dir)).includes('refused'));
		t.false((await readdir(dir)).includes('base'));
	}
	await writeFile(path, whole);
	t.is(await verdict(t, dir), 'used');
});

test('snapshot › another machine’s, another workload’s or a newer onramp’s is refused, each with its reason', async t => {
	const dir = await temporaryDir(t);
	const other = await temporaryDir(t);
	await (await settled(t, dir, small)).relay.stop();
	await (await settled(t, other, small)).relay.stop();
	const mine = await readFile(join(dir, 'base'));
	const path = join(dir, 'base');
	await copyFile(join(other, 'base'), path);
	t.regex((await verdict(t, dir)) ?? '', /was written by another machine, or its seal.key is gone/);
	await writeFile(path, mine);
	t.regex(
		(await verdict(t, dir, {owner: 'somebody else'})) ?? '',
		/belongs to vm as cluster.local.*, and this is somebody else/,
	);
	await writeFile(path, mine.toString('latin1').replace('configuration 1', 'configuration 2'), 'latin1');
	t.regex((await verdict(t, dir)) ?? '', /is of format 2, and this onramp reads 1/);
});

test('snapshot › latest changes that are damaged leave the rest in use', async t => {
	const dir = await temporaryDir(t);
	const first = await settled(t, dir, {
		...small,
		clusters: [...small.clusters, resource(cds, 'pad', 'x'.repeat(9000))],
	});
	const savedAt = await untilSaved(first);
	first.stream.send(cds, [resource(cds, 'late')]);
	await take(first.envoy, cds, 2);
	await untilSaved(first, savedAt);
	await first.relay.stop();
	await writeFile(join(dir, 'recent'), 'no');
	const {envoy} = await bootAlone(t, dir);
	t.deepEqual([...(await take(envoy, cds, 1)).keys()], ['out|80', 'static', 'pad']);
});

test('snapshot › a disk that cannot take it is said, tried again, and costs nothing else', async t => {
	const dir = await temporaryDir(t);
	await writeFile(dir, 'in the way');
	const agent = await settled(t, dir, small);
	await agent.clock.advance(2000);
	const problem = await until('the problem', () => agent.relay.status().snapshot?.problem);
	t.regex(problem, /^not saved: .*(EEXIST|ENOTDIR)/);
	t.true(agent.readiness.isReady);
	await rm(dir);
	await agent.clock.advance(60_000);
	await untilSaved(agent);
	t.is(agent.relay.status().snapshot?.problem, undefined);
});

test('snapshot › nothing is saved before Envoy has taken it, nor while the control plane owes the rest', async t => {
	const dir = await temporaryDir(t);
	const {relay, connect, upstream, clock} = boot(t, dir);
	relay.begin();
	const envoy = connect();
	envoy.ask(cds);
	envoy.ask(lds);
	const stream: FakeUpstreamStream = await upstream.stream(1);
	await until('the requests', () => stream.of(lds).length > 0);
	stream.send(cds, small.clusters);
	await take(envoy, cds, 1);
	await clock.advance(10_000);
	t.is(relay.status().snapshot?.savedAt, undefined, 'no listeners yet');
	stream.send(lds, small.listeners);
	await envoy.response(lds, 1);
	await clock.advance(10_000);
	t.is(relay.status().snapshot?.savedAt, undefined, 'not taken yet');
	envoy.answer(await envoy.response(lds, 1));
	await settle();
	await untilSaved({relay, clock});
	t.pass();
});

test('snapshot › one that Envoy after Envoy dies of is put aside', async t => {
	const dir = await temporaryDir(t);
	await (await settled(t, dir, small)).relay.stop();
	const agent = boot(t, dir);
	agent.upstream.refuse = away;
	agent.relay.begin();
	await agent.clock.advance(0);
	for (let death = 1; death <= 3; death++) {
		const envoy = agent.connect();
		envoy.ask(cds);
		await envoy.response(cds, 1);
		envoy.leave();
		await until('its end', () => agent.relay.status().sessions === 0);
	}
	const survivor = agent.connect();
	survivor.ask(cds);
	survivor.ask(lds);
	await settle();
	t.deepEqual(survivor.responses, []);
	t.false(agent.readiness.isReady);
	t.regex(agent.relay.status().snapshot?.problem ?? '', /put aside: Envoy ended 3 times/);
	await agent.relay.stop();
	t.true((await readdir(dir)).includes('refused'));
	t.false((await readdir(dir)).includes('base'));
});

test('snapshot › a file that cannot be read is no reason not to start', async t => {
	const dir = await temporaryDir(t);
	await (await settled(t, dir, small)).relay.stop();
	await rm(join(dir, 'base'));
	await mkdir(join(dir, 'base'));
	t.regex((await verdict(t, dir)) ?? '', /what was saved is not used: .*EISDIR/);
});
