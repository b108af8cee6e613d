import {setImmediate as nextTurn} from 'node:timers/promises';
import test from 'ava';
import fc from 'fast-check';
import {typeUrl} from '../../../src/proto/types.ts';
import {FieldReader, FieldWriter} from '../../../src/proto/wire.ts';
import {Cache, endpointNameOf, versionOf} from '../../../src/relay/cache.ts';
import {buildDelta, parseDeltaResponse} from '../../../src/relay/envelope.ts';
import {anyOf} from '../../support/fake-ads.ts';

const {cluster: cds, endpoint: eds, route: rds} = typeUrl;

type Contents = ReadonlyMap<string, Buffer>;

function listOf(contents: Iterable<readonly [string, Buffer]>) {
	const answer = buildDelta({anyBytes: 0, nameBytes: 0, count: 0});
	for (const [name, any] of contents) answer.add(name, '', any);
	return parseDeltaResponse(answer.finish(cds, 'n', [])).resources;
}

/** Short, so that a difference can be read. */
const summarize = (contents: Contents): string[] =>
	[...contents].map(([name, any]) => `${name} ${any.length} ${versionOf(any, '')}`).sort();

const contentsOf = (cache: Cache, url: string): string[] =>
	summarize(new Map([...cache.type(url).resources].map(([name, {any}]) => [name, any])));

const sizeOf = (contents: Contents): number => [...contents.values()].reduce((sum, any) => sum + any.length, 0);

test('cache › holds what it was told last, whatever came before', async t => {
	const name = fc.constantFrom('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h');
	const length = fc.oneof(fc.integer({min: 0, max: 200}), fc.integer({min: 0, max: 120_000}));
	const content = fc.tuple(length, fc.nat(255)).map(([size, byte]) => Buffer.alloc(size, byte));
	const answer = fc.record({
		url: fc.constantFrom(cds, eds, rds),
		resources: fc.dictionary(name, content, {maxKeys: 8, noNullPrototype: true}),
		removed: fc.array(name, {maxLength: 3}),
		isWhole: fc.boolean(),
	});
	await fc.assert(
		fc.asyncProperty(fc.array(answer, {maxLength: 12}), async answers => {
			const cache = new Cache();
			const model = new Map<string, Map<string, Buffer>>();
			for (const {url, resources, removed, isWhole} of answers) {
				const contents = Object.entries(resources);
				const known = model.get(url) ?? new Map();
				const expected = new Map(isWhole ? [] : known);
				for (const [key, any] of contents) expected.set(key, any);
				for (const key of removed) expected.delete(key);
				model.set(url, expected);
				const change = await cache.type(url).apply(listOf(contents), removed, isWhole);
				cache.tidy();
				t.deepEqual(
					change.changed.map(resource => resource.name).sort(),
					contents
						.filter(([key, any]) => !known.get(key)?.equals(any))
						.map(([key]) => key)
						.sort(),
				);
			}
			for (const [url, expected] of model) {
				t.deepEqual(contentsOf(cache, url), summarize(expected));
				t.is(cache.type(url).sizeBytes, sizeOf(expected));
			}
		}),
		{numRuns: 100},
	);
});

test('cache › keeps one large message rather than thousands of pieces, and lets go of it with the last of them', async t => {
	const cache = new Cache();
	const list = listOf(Array.from({length: 1000}, (_, i) => [`c${i}`, Buffer.alloc(400, i)]));
	await cache.type(cds).apply(list, [], true);
	t.is(cache.heldBytes, list.message.length);
	t.true([...cache.type(cds).resources.values()].every(({slab}) => slab.bytes === list.message));
	await cache.type(cds).apply(listOf([]), [], true);
	t.is(cache.heldBytes, 0);
});

test('cache › does not keep a large message for the few resources in it that are new', async t => {
	const cache = new Cache();
	const contents = Array.from({length: 1000}, (_, i) => [`c${i}`, Buffer.alloc(400, i)] as const);
	const first = listOf(contents);
	await cache.type(cds).apply(first, [], true);
	const second = listOf([...contents.slice(1), ['c0', Buffer.from('new')]]);
	const {changed} = await cache.type(cds).apply(second, [], false);
	t.deepEqual(
		changed.map(({name}) => name),
		['c0'],
	);
	t.not(changed[0]!.slab.bytes, second.message);
});

test('cache › does not grow by years of small changes', async t => {
	const cache = new Cache();
	const bytes = (i: number, round: number) => Buffer.alloc(1000 + ((i * 7 + round) % 50), i + round);
	const all = (round: number) => Array.from({length: 1500}, (_, i) => [`c${i}`, bytes(i, round)] as const);
	const expected = new Map(all(0));
	await cache.type(cds).apply(listOf(expected), [], true);
	let random = 1;
	for (let round = 1; round < 120; round++) {
		// Scattered, so that every block keeps something for long.
		const touched = all(round).filter(() => {
			random = (random * 48_271) % 0x7fffffff;
			return random % 29 === 0;
		});
		for (const [name, any] of touched) expected.set(name, any);
		await cache.type(cds).apply(listOf(touched), [], false);
		cache.tidy();
	}
	t.deepEqual(contentsOf(cache, cds), summarize(expected));
	t.true(cache.heldBytes < sizeOf(expected) * 2.5, `${cache.heldBytes} for ${sizeOf(expected)}`);
});

test('cache › lets other work in while it takes in a large answer', async t => {
	const cache = new Cache();
	const list = listOf(Array.from({length: 5000}, (_, i) => [`c${i}`, Buffer.alloc(100, i)]));
	let isDone = false;
	const applied = cache
		.type(cds)
		.apply(list, [], true)
		.then(() => {
			isDone = true;
		});
	let turns = 0;
	while (!isDone) {
		await nextTurn();
		turns++;
	}
	await applied;
	t.true(turns >= 10, `${turns} turns for 5,000 resources`);
});

test('cache › keeps one string for a cluster, its endpoints and their assignment', async t => {
	const body = new FieldWriter()
		.string(1, 'outbound|80||a')
		.uint(2, 3)
		.message(3, eds => eds.string(2, 'outbound|80||a'));
	const cluster = new FieldWriter().string(1, cds).append(2, body).finish();
	const cache = new Cache();
	await cache.type(cds).apply(listOf([['outbound|80||a', cluster]]), [], true);
	t.is(cache.endpointName('outbound|80||a'), 'outbound|80||a');
	await cache.type(eds).apply(listOf([['outbound|80||a', anyOf(eds, 'outbound|80||a', '')]]), [], false);
	t.deepEqual([...cache.type(eds).resources.keys()], ['outbound|80||a']);
});

test('endpoint name › is the service name, the own name without one, and nothing for other kinds of cluster', t => {
	const read = (write: (cluster: FieldWriter) => void) => {
		const body = new FieldWriter();
		write(body);
		return endpointNameOf('own', new FieldReader(new FieldWriter().string(1, cds).append(2, body).finish()));
	};
	t.is(
		read(cluster => cluster.uint(2, 3).message(3, config => config.string(2, 'service'))),
		'service',
	);
	t.is(
		read(cluster => cluster.message(3, config => config.string(2, 'before the kind')).uint(2, 3)),
		'before the kind',
	);
	t.is(
		read(cluster => cluster.uint(2, 3)),
		'own',
	);
	t.is(
		read(cluster => cluster.uint(2, 1).message(3, config => config.string(2, 'not used'))),
		undefined,
	);
});

test('version › is the same for the same content and rewriting, and differs otherwise', t => {
	const [a, b] = [Buffer.from('a'), Buffer.from('b')];
	t.is(versionOf(a, ''), versionOf(Buffer.from('a'), ''));
	t.not(versionOf(a, ''), versionOf(b, ''));
	t.not(versionOf(a, ''), versionOf(a, 'p'));
	t.not(versionOf(a, 'p'), versionOf(a, 'q'));
});
