import test from 'ava';
import {AgentError} from '../../../src/errors.ts';
import {type Clock, Metrics} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {typeUrl} from '../../../src/proto/types.ts';
import {Upstream} from '../../../src/relay/upstream.ts';
import {FakeUpstreamStream, settle} from '../../support/fake-ads.ts';
import {mostWithin, seededRandom} from '../../support/seeded-random.ts';

const agents = 1000;
const awayMs = 600_000;
/** The defaults. */
const backoff = {baseMs: 1000, maxMs: 60_000};

/** One clock for a fleet: all who wake at the same millisecond wake together. */
class FleetClock implements Clock {
	#nowMs = 0;
	readonly #due = new Map<number, Set<() => void>>();

	now = () => new Date(Date.UTC(2030) + this.#nowMs);
	monotonicMs = () => this.#nowMs;

	sleep(ms: number, signal?: AbortSignal): Promise<void> {
		const atMs = this.#nowMs + Math.round(ms);
		const due = this.#due.get(atMs) ?? new Set();
		this.#due.set(atMs, due);
		return new Promise((resolve, reject) => {
			due.add(resolve);
			signal?.addEventListener('abort', () => {
				due.delete(resolve);
				reject(signal.reason);
			});
		});
	}

	async runUntil(endMs: number): Promise<void> {
		await settle();
		for (; this.#nowMs < endMs; this.#nowMs++) {
			const due = this.#due.get(this.#nowMs);
			if (!due) continue;
			this.#due.delete(this.#nowMs);
			for (const wake of due) wake();
			await new Promise(resolve => setImmediate(resolve));
		}
		await settle();
	}
}

test('fleet › 1,000 agents whose control plane dies at once come back within the cap, no second with more than 6 % of them', async t => {
	const clock = new FleetClock();
	const random = seededRandom(1);
	let isAway = false;
	let attempts: number[] = [];
	const openedMs: number[] = [];
	const streams: FakeUpstreamStream[] = [];
	const openAdsStream = async (protocol: 'delta' | 'sotw') => {
		attempts.push(clock.monotonicMs());
		if (isAway) throw new AgentError('control_plane.unreachable', 'connect: ECONNREFUSED');
		openedMs.push(clock.monotonicMs());
		const stream = new FakeUpstreamStream(protocol, 'istiod');
		streams.push(stream);
		setImmediate(() => stream.send(typeUrl.cluster, []));
		return stream.stream;
	};
	const fleet = Array.from({length: agents}, () => {
		const upstream = new Upstream({
			openAdsStream,
			protocol: 'delta',
			node: () => Buffer.alloc(0),
			backoff,
			onResponse: () => {},
			onState: () => {},
			clock,
			random,
			log: silentLogger,
			metrics: new Metrics(),
		});
		upstream.subscribe(typeUrl.cluster);
		upstream.setWanted(true);
		return upstream;
	});
	await clock.runUntil(100_000);
	t.true(fleet.every(upstream => upstream.status().state === 'connected'));

	isAway = true;
	attempts = [];
	for (const stream of streams.splice(0)) stream.fail(new AgentError('control_plane.unreachable', 'gone'));
	await clock.runUntil(100_000 + awayMs);
	// The first to come knock at a door that is still closed; from then on they are apart.
	const settled = attempts.filter(ms => ms > 100_000 + 120_000);
	const perSecond = (1000 * settled.length) / (awayMs - 120_000);
	t.true(perSecond < agents / 25, `${perSecond} attempts a second while it is away`);
	t.true(
		mostWithin(1000, settled) <= agents * 0.08,
		`${mostWithin(1000, settled)} in the fullest second while it is away`,
	);

	isAway = false;
	openedMs.length = 0;
	await clock.runUntil(100_000 + awayMs + backoff.maxMs + 1);
	t.is(openedMs.length, agents, 'all are back within the cap');
	const fullest = mostWithin(1000, openedMs);
	t.true(fullest <= agents * 0.06, `${fullest} in the fullest second of the return`);
	t.log(`fullest second of the return: ${fullest} of ${agents}; ${Math.round(perSecond)} attempts a second while away`);
	const first = mostWithin(1000, attempts);
	t.log(`fullest second after the loss: ${first} attempts`);
	await Promise.all(fleet.map(upstream => upstream.stop()));
});
