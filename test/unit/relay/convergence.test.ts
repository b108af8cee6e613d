import test from 'ava';
import fc from 'fast-check';
import {AgentError} from '../../../src/errors.ts';
import {typeUrl} from '../../../src/proto/types.ts';
import {anyOf, type FakeEnvoy, settle} from '../../support/fake-ads.ts';
import {setUpRelay} from '../../support/relay.ts';

const {cluster: cds, route: rds} = typeUrl;

/** Held by the control plane, or by Envoy: name → content. */
type State = Map<string, string>;

const names = Array.from({length: 12}, (_, i) => `r${i}`);
/** More than are handled in a turn, so that changes come while an answer is being made. */
const bulk = Array.from({length: 700}, (_, i) => `bulk${i}`);

const some = fc.subarray(names, {minLength: 1, maxLength: 4});
const step = fc.oneof(
	fc.record({kind: fc.constant('push' as const), url: fc.constantFrom(cds, rds), names: some, isBulk: fc.boolean()}),
	fc.record({kind: fc.constant('remove' as const), url: fc.constantFrom(cds, rds), names: some}),
	fc.record({kind: fc.constant('subscribe' as const), names: some}),
	fc.record({kind: fc.constant('unsubscribe' as const), names: some}),
	fc.record({kind: fc.constant('turns' as const), count: fc.integer({min: 1, max: 4})}),
	fc.constant({kind: 'reconnect envoy'} as const),
	fc.constant({kind: 'reconnect upstream'} as const),
);

/** Plays an Envoy that takes everything, and remembers what it holds. */
class HoldingEnvoy {
	readonly held = new Map<string, State>([
		[cds, new Map()],
		[rds, new Map()],
	]);
	readonly wanted = new Set<string>();
	#versions = new Map<string, Map<string, string>>([
		[cds, new Map()],
		[rds, new Map()],
	]);
	#envoy: FakeEnvoy;
	#seen = 0;

	constructor(envoy: FakeEnvoy) {
		this.#envoy = envoy;
		this.#greet();
	}

	subscribe(asked: readonly string[]): void {
		const fresh = asked.filter(name => !this.wanted.has(name));
		for (const name of fresh) this.wanted.add(name);
		if (fresh.length > 0) this.#envoy.ask(rds, fresh);
	}

	unsubscribe(asked: readonly string[]): void {
		const gone = asked.filter(name => this.wanted.delete(name));
		for (const name of gone) this.#drop(rds, name);
		if (gone.length > 0) this.#envoy.forget(rds, gone);
	}

	/** Takes what has come; returns whether anything had. */
	take(): boolean {
		const fresh = this.#envoy.responses.slice(this.#seen);
		this.#seen += fresh.length;
		for (const response of fresh) {
			const {typeUrl: url, resources, removed} = response;
			for (const {name, any, version} of resources) {
				if (url === rds && !this.wanted.has(name)) continue;
				this.held.get(url)!.set(name, any.toString('latin1'));
				this.#versions.get(url)!.set(name, version);
			}
			for (const name of removed) this.#drop(url, name);
			this.#envoy.answer(response);
		}
		return fresh.length > 0;
	}

	reconnect(envoy: FakeEnvoy): void {
		this.take();
		this.#envoy.leave();
		this.#envoy = envoy;
		this.#seen = 0;
		this.#greet();
	}

	#greet(): void {
		this.#envoy.ask(cds, [], Object.fromEntries(this.#versions.get(cds)!));
		if (this.wanted.size > 0) this.#envoy.ask(rds, [...this.wanted], Object.fromEntries(this.#versions.get(rds)!));
	}

	#drop(url: string, name: string): void {
		this.held.get(url)!.delete(name);
		this.#versions.get(url)!.delete(name);
	}
}

test('relay › leaves Envoy with what the control plane has, in whatever order things happen', async t => {
	await fc.assert(
		fc.asyncProperty(fc.array(step, {maxLength: 25}), async steps => {
			const {upstream, clock, relay, connect} = setUpRelay();
			const truth = new Map<string, State>([
				[cds, new Map()],
				[rds, new Map()],
			]);
			let serial = 0;
			const content = (url: string, name: string): readonly [string, Buffer] => [
				name,
				anyOf(url, name, truth.get(url)!.get(name)!),
			];
			const current = () => upstream.streams.at(-1)!;
			/** As istiod does on each new stream: all clusters, and the routes asked for. */
			const sendAll = () => {
				current().send(
					cds,
					[...truth.get(cds)!.keys()].map(name => content(cds, name)),
				);
				const asked = current()
					.of(rds)
					.flatMap(({subscribe}) => subscribe);
				const known = asked.filter(name => truth.get(rds)!.has(name));
				const unknown = asked.filter(name => !truth.get(rds)!.has(name));
				if (asked.length > 0)
					current().send(
						rds,
						known.map(name => content(rds, name)),
						unknown,
					);
			};
			const envoy = new HoldingEnvoy(connect());
			await upstream.stream(1);
			sendAll();
			for (const action of steps) {
				if (action.kind === 'push') {
					const pushed = action.isBulk ? [...bulk, ...action.names] : action.names;
					for (const name of pushed) truth.get(action.url)!.set(name, String(serial++));
					current().send(
						action.url,
						pushed.map(name => content(action.url, name)),
					);
				} else if (action.kind === 'remove') {
					for (const name of action.names) truth.get(action.url)!.delete(name);
					current().send(action.url, [], action.names);
				} else if (action.kind === 'subscribe') envoy.subscribe(action.names);
				else if (action.kind === 'unsubscribe') envoy.unsubscribe(action.names);
				else if (action.kind === 'turns') {
					for (let i = 0; i < action.count; i++) await new Promise(resolve => setImmediate(resolve));
					envoy.take();
				} else if (action.kind === 'reconnect envoy') envoy.reconnect(connect());
				else {
					const before = upstream.streams.length;
					current().fail(new AgentError('control_plane.unreachable', 'gone'));
					for (let i = 0; upstream.streams.length === before; i++) {
						await settle();
						// In steps shorter than the relay's patience with a silent stream.
						await clock.advance(1000);
						if (i > 200) throw new Error('no new stream');
					}
					await settle();
					sendAll();
				}
			}
			// What Envoy asked for last may still be without an answer.
			await settle();
			sendAll();
			do for (let i = 0; i < 10; i++) await settle();
			while (envoy.take());
			const expected = new Map([
				[cds, truth.get(cds)!],
				[rds, new Map([...truth.get(rds)!].filter(([name]) => envoy.wanted.has(name)))],
			]);
			for (const [url, state] of expected) {
				const held = envoy.held.get(url)!;
				const differing = [...new Set([...state.keys(), ...held.keys()])].filter(
					name => held.get(name) !== (state.has(name) ? content(url, name)[1].toString('latin1') : undefined),
				);
				// Thrown, not asserted, so that the shortest way to it is looked for and told.
				if (differing.length > 0) throw new Error(`${url}: ${differing.length} differ, first ${differing[0]}`);
			}
			await relay.stop();
		}),
		{numRuns: 60},
	);
	t.pass();
});
