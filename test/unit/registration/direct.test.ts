import test, {type ExecutionContext} from 'ava';
import type {RegistrationConfig} from '../../../src/config/types.ts';
import {AgentError} from '../../../src/errors.ts';
import type {ApiObject, ApiRequest, KubernetesClient} from '../../../src/kubernetes/index.ts';
import {Readiness} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {startDirectRegistration, type Wish} from '../../../src/registration/direct.ts';
import type {OwnEntries} from '../../../src/registration/own-entries.ts';
import {type JsonMap, KubernetesStore, kinds, Refusal} from '../../../src/sandbox/kubernetes-store.ts';
import {FakeClock} from '../../support/fake-clock.ts';
import {until} from '../../support/mesh.ts';
import {workload} from '../control-plane/world.ts';

const [entries, groups] = [kinds[0]!, kinds[1]!];

const reasons: Readonly<Record<number, string>> = {404: 'kubernetes.not_found', 409: 'kubernetes.conflict'};

/** The store behind the API, without the way to it. */
function makeClient() {
	const store = new KubernetesStore(() => {});
	store.create(groups, 'bar', {
		apiVersion: 'networking.istio.io/v1',
		kind: 'WorkloadGroup',
		metadata: {name: 'shop'},
		spec: {template: {}},
	});
	const sent: string[] = [];
	const state = {failure: undefined as AgentError | undefined, isSilent: false, before: (_: ApiRequest) => {}};
	const act = ({verb, resource, subresource, namespace, name, body = {}}: ApiRequest): unknown => {
		const kind = resource === 'workloadentries' ? entries : groups;
		if (verb === 'get') return store.get(kind, namespace, name);
		if (verb === 'create') return store.create(kind, namespace, body as JsonMap);
		if (verb === 'update') return store.update(kind, namespace, name, body as JsonMap, false);
		if (verb === 'patch') return store.merge(kind, namespace, name, body as JsonMap, subresource === 'status');
		return store.delete(kind, namespace, name, body as JsonMap);
	};
	const client: KubernetesClient = {
		send: async (request, signal) => {
			sent.push(`${request.verb} ${request.name}`);
			if (state.isSilent)
				await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason), {once: true}));
			if (state.failure) throw state.failure;
			state.before(request);
			try {
				return structuredClone(act(request)) as ApiObject;
			} catch (error) {
				if (!(error instanceof Refusal)) throw error;
				throw new AgentError((reasons[error.code] ?? 'kubernetes.failed') as never, error.message);
			}
		},
	};
	return {store, sent, state, client};
}

function makeOwn(known: readonly string[] = []): OwnEntries {
	let list = known;
	return {
		instance: 'me',
		list: () => list,
		add: async entry => {
			list = [...new Set([...list, entry])];
		},
		remove: async entry => {
			list = list.filter(each => each !== entry);
		},
	};
}

function setUp(
	t: ExecutionContext,
	options: {own?: OwnEntries; isEnded?: boolean; hasHealth?: boolean; config?: Partial<Direct>} = {},
) {
	const made = makeClient();
	const clock = new FakeClock();
	const readiness = new Readiness(['registration']);
	const now = {address: '10.0.0.5', wish: {kind: 'present'} as Wish};
	const calls: string[] = [];
	const own = options.own ?? makeOwn();
	const registration = startDirectRegistration({
		config: {
			mode: 'direct',
			group: 'shop',
			entryName: undefined,
			checkMs: 60_000,
			kubernetes: {kind: 'kubeconfig', path: '/none'},
			stateDir: '/none',
			...options.config,
		},
		client: made.client,
		own,
		workload: () => workload,
		hasHealth: options.hasHealth ?? false,
		address: () => now.address,
		wish: () => now.wish,
		finding: () => undefined,
		onLeaving: () => calls.push('hold'),
		untilLeft: async () => void calls.push('left'),
		endStream: () => calls.push('end'),
		isEnded: options.isEnded ?? true,
		gate: readiness.gate('registration'),
		clock,
		random: () => 0.5,
		log: silentLogger,
	});
	t.teardown(() => registration.stop());
	return {...made, clock, now, calls, own, registration, gate: () => readiness.states()[0]!};
}

type Direct = Extract<RegistrationConfig, {mode: 'direct'}>;

const names = ({store}: {store: KubernetesStore}) => store.list(entries).map(({metadata}) => metadata.name);
const untilState = (of: ReturnType<typeof setUp>, state: string) =>
	until(state, () => of.registration.status().state === state);
const away = () => new AgentError('kubernetes.unreachable', 'refused', {hint: 'wait'});

test('direct › the entry that cannot be made is tried again with full jitter, and the gate says why meanwhile', async t => {
	const world = setUp(t);
	world.state.failure = away();
	await until('a failure', () => world.registration.status().attempts === 1);
	t.is(world.registration.status().state, 'connecting');
	t.like(world.gate(), {isOpen: false, reason: 'refused', hint: 'wait'});
	for (const [waitMs, attempts] of [
		[500, 2],
		[1000, 3],
		[2000, 4],
	] as const) {
		const before = world.sent.length;
		await world.clock.advance(waitMs - 1);
		t.is(world.sent.length, before, 'not earlier');
		await world.clock.advance(1);
		await until('the next failure', () => world.registration.status().attempts === attempts);
	}
	world.state.failure = undefined;
	world.registration.checkNow();
	await untilState(world, 'registered');
	t.true(world.gate().isOpen);
	t.is(world.registration.status().attempts, 0);
	t.deepEqual(names(world), ['shop-10.0.0.5']);
});

test('direct › once registered, an API that is away or refuses us closes no gate', async t => {
	const world = setUp(t);
	await untilState(world, 'registered');
	for (const code of ['kubernetes.unreachable', 'kubernetes.unauthenticated', 'kubernetes.forbidden'] as const) {
		world.state.failure = new AgentError(code, `why ${code}`);
		world.registration.checkNow();
		await until(code, () => world.registration.status().reason === `why ${code}`);
		t.is(world.registration.status().state, 'away');
		t.regex(world.gate().reason, new RegExp(`^bar/shop-10.0.0.5, not confirmed since .*: why ${code}$`));
		t.true(world.gate().isOpen);
	}
});

test('direct › an entry that an agent before us has made is away, not missing, until the API answers', async t => {
	const world = setUp(t, {own: makeOwn(['bar/shop-10.0.0.5'])});
	world.state.isSilent = true;
	t.is(world.registration.status().state, 'away');
	t.true(world.gate().isOpen);
	await until('asked', () => world.sent.length > 0);
	world.state.isSilent = false;
});

test('direct › another address makes another entry, and deletes the old one after', async t => {
	const world = setUp(t);
	await untilState(world, 'registered');
	world.now.address = '10.0.0.6';
	world.registration.look();
	await until('one entry', () => names(world).join() === 'shop-10.0.0.6');
	t.true(world.sent.indexOf('create shop-10.0.0.6') < world.sent.indexOf('delete shop-10.0.0.5'));
	t.deepEqual(world.own.list(), ['bar/shop-10.0.0.6']);
});

test('direct › with a name of its own the entry follows the address', async t => {
	const world = setUp(t, {config: {entryName: 'till-1'}});
	await untilState(world, 'registered');
	world.now.address = 'fd00::6';
	world.registration.look();
	await until('the address', () => world.store.list(entries)[0]?.spec?.['address'] === 'fd00::6');
	t.deepEqual(names(world), ['till-1']);
});

test('direct › of what we had before, only what is still ours is deleted', async t => {
	const world = setUp(t, {own: makeOwn(['bar/shop-10.0.0.1', 'bar/shop-10.0.0.2', 'bar/shop-10.0.0.3'])});
	const make = (name: string, instance: string) =>
		world.store.create(entries, 'bar', {
			apiVersion: 'networking.istio.io/v1',
			kind: 'WorkloadEntry',
			metadata: {name, annotations: {'onramp/instance': instance}},
			spec: {address: name.slice(5)},
		});
	make('shop-10.0.0.1', 'me');
	make('shop-10.0.0.2', 'another');
	await until('the old one gone', () => world.own.list().length === 1);
	t.deepEqual(names(world).sort(), ['shop-10.0.0.2', 'shop-10.0.0.5']);
});

test('direct › who writes between our reading and our writing is not written over', async t => {
	const world = setUp(t, {hasHealth: true});
	await untilState(world, 'registered');
	const change = (metadata: JsonMap) =>
		world.store.merge(entries, 'bar', 'shop-10.0.0.5', {metadata, spec: {weight: Math.random()}}, false);
	change({annotations: {first: 'x'}});
	let conflicts = 0;
	world.state.before = ({verb}) => {
		if (verb === 'update' && conflicts++ === 0) change({annotations: {second: 'y'}});
	};
	world.registration.checkNow();
	await until('put right', () => !('weight' in (world.store.list(entries)[0]?.spec ?? {})));
	t.is(conflicts, 2);
	t.like(world.store.list(entries)[0]?.metadata['annotations'], {first: 'x', second: 'y'});
});

test('direct › a twin that is first between our reading and our writing keeps its entry', async t => {
	const world = setUp(t);
	world.state.before = ({verb, body}) => {
		if (verb !== 'create') return;
		world.state.before = () => {};
		const object = structuredClone(body) as {metadata: {annotations: Record<string, string>}};
		object.metadata.annotations['onramp/instance'] = 'twin';
		world.store.create(entries, 'bar', object as unknown as JsonMap);
	};
	await untilState(world, 'refused');
	t.regex(world.gate().reason, /belongs to another machine \(vm1, instance twin\)/);
	t.like(world.store.list(entries)[0]?.metadata['annotations'], {'onramp/instance': 'twin'});
	await world.registration.stop();
	t.deepEqual(names(world), ['shop-10.0.0.5'], 'nor does a stop take it away');
});

test('direct › health is written once a report, again when it is said again, and into an entry that is made anew', async t => {
	const world = setUp(t, {hasHealth: true});
	await untilState(world, 'registered');
	const conditions = () => (world.store.list(entries)[0]?.status?.['conditions'] ?? []) as readonly JsonMap[];
	t.deepEqual(conditions(), [], 'nothing is said before anything is known');
	world.registration.report({isHealthy: false, message: 'why'});
	await until('unhealthy', () => conditions()[0]?.['message'] === 'why');
	const patches = () => world.sent.filter(each => each.startsWith('patch')).length;
	t.is(patches(), 1);
	world.registration.checkNow();
	await until('looked at', () => world.sent.filter(each => each === 'get shop-10.0.0.5').length >= 3);
	t.is(patches(), 1);
	world.registration.report({isHealthy: true, message: ''});
	await until('healthy', () => conditions()[0]?.['status'] === 'True');
	world.registration.report({isHealthy: true, message: ''});
	await until('said again', () => patches() === 3);
	world.store.delete(entries, 'bar', 'shop-10.0.0.5', {});
	world.registration.checkNow();
	await until('said of the new one', () => conditions()[0]?.['status'] === 'True');
});

test('direct › what is deleted behind our back is there again with the next check', async t => {
	const world = setUp(t);
	await untilState(world, 'registered');
	await until('asleep', () => world.sent.length >= 3);
	world.store.delete(entries, 'bar', 'shop-10.0.0.5', {});
	await world.clock.advance(60_000);
	await until('there', () => names(world).length === 1);
	t.is(world.registration.status().state, 'registered');
});

test('direct › a stop takes the entry away, waits until callers have heard, and ends the stream last', async t => {
	const world = setUp(t);
	await untilState(world, 'registered');
	await world.registration.stop();
	t.deepEqual(names(world), []);
	t.deepEqual(world.calls, ['hold', 'left', 'end']);
	t.is(world.registration.status().state, 'withdrawn');
	t.deepEqual(world.own.list(), []);
});

test('direct › a twin that takes the name between our looking and our deleting keeps its entry', async t => {
	const world = setUp(t);
	await untilState(world, 'registered');
	world.state.before = ({verb}) => {
		if (verb !== 'delete') return;
		const {metadata, ...rest} = world.store.delete(entries, 'bar', 'shop-10.0.0.5', {});
		const {name} = metadata;
		const annotations = {'onramp/instance': 'twin'};
		world.store.create(entries, 'bar', {...rest, metadata: {name, annotations}} as unknown as JsonMap);
		world.state.before = () => {};
	};
	await world.registration.stop();
	t.like(world.store.list(entries)[0]?.metadata['annotations'], {'onramp/instance': 'twin'});
});

test('direct › a stop that leaves Envoy leaves the entry, too; "leave" takes it away', async t => {
	const world = setUp(t, {isEnded: false});
	await untilState(world, 'registered');
	const left = setUp(t, {isEnded: false});
	await untilState(left, 'registered');
	await world.registration.stop();
	t.deepEqual(names(world), ['shop-10.0.0.5']);
	await left.registration.leave();
	t.deepEqual(names(left), []);
	await left.registration.stop();
	t.deepEqual(left.calls, ['hold', 'left', 'end']);
});

test('direct › a stop waits 3 s for an API that says nothing, and no longer', async t => {
	const world = setUp(t);
	await untilState(world, 'registered');
	world.state.isSilent = true;
	const stopped = world.registration.stop();
	await until('asked', () => world.calls.includes('hold'));
	await world.clock.advance(2999);
	t.false(world.calls.includes('end'));
	await world.clock.advance(1);
	await stopped;
	t.deepEqual(world.calls, ['hold', 'end']);
	t.deepEqual(world.own.list(), ['bar/shop-10.0.0.5'], 'the next agent knows of it');
});

test('direct › withheld, the entry is away though the gate is open; wanted again, it is back', async t => {
	const world = setUp(t);
	await untilState(world, 'registered');
	world.now.wish = {kind: 'absent', reason: 'maintenance', hint: 'onramp ready', isAsked: true};
	world.registration.look();
	await untilState(world, 'withdrawn');
	t.deepEqual(names(world), []);
	t.like(world.gate(), {isOpen: true, reason: 'not registered: maintenance'});
	world.now.wish = {kind: 'absent', reason: 'no Envoy', hint: 'look', isAsked: false};
	world.registration.look();
	t.like(world.gate(), {isOpen: false, reason: 'no Envoy'});
	world.now.wish = {kind: 'present'};
	world.registration.look();
	await untilState(world, 'registered');
});

test('direct › while it is not known whether we are wanted, nothing is touched', async t => {
	const world = setUp(t);
	await untilState(world, 'registered');
	world.now.wish = {kind: 'wait', reason: 'Envoy is not ready yet'};
	const before = world.sent.length;
	world.registration.look();
	await world.clock.advance(300_000);
	t.is(world.sent.length, before);
	t.deepEqual(names(world), ['shop-10.0.0.5']);
});
