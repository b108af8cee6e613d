import {mkdtemp, rm, stat, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {type CloudFacts, loadKept, saveKept, startCloud, trustKept} from '../../../src/cloud/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {FakeClock} from '../../support/fake-clock.ts';
import {until} from '../../support/mesh.ts';

const facts: CloudFacts = {
	...{cloud: 'aws', locality: 'r/z', instanceId: 'i-1'},
	...{instanceType: 't', address: '10.0.0.5'},
};

function setUp(t: ExecutionContext, kept?: CloudFacts) {
	const clock = new FakeClock();
	const world = {
		answer: undefined as CloudFacts | undefined,
		asked: 0,
		saved: [] as CloudFacts[],
		heard: [] as CloudFacts[],
	};
	const cloud = startCloud({
		cloud: 'aws',
		waitMs: 2000,
		fetch: async signal => {
			signal.throwIfAborted();
			world.asked++;
			if (!world.answer) throw new Error('nobody');
			return world.answer;
		},
		kept,
		save: async each => void world.saved.push(each),
		onChange: each => world.heard.push(each),
		clock,
		random: () => 0.5,
		log: silentLogger,
	});
	t.teardown(() => cloud.stop());
	return {clock, world, cloud};
}

const never = new AbortController().signal;

test('cloud › waits for the first answer, 2 s and no longer, and asks on', async t => {
	const {clock, world, cloud} = setUp(t);
	let isOver = false;
	const waited = cloud.untilKnown(never).then(() => {
		isOver = true;
	});
	await clock.advance(1999);
	t.false(isOver);
	await clock.advance(1);
	await waited;
	t.like(cloud.status(), {state: 'asking', reason: 'nobody'});
	world.answer = facts;
	await clock.advance(300_000);
	await until('known', () => cloud.current() !== undefined);
	t.deepEqual(world.heard, [facts]);
	t.deepEqual(world.saved, [facts]);
	const {asked} = world;
	await clock.advance(3_600_000);
	t.is(world.asked, asked, 'once it is known nobody is asked again');
	t.like(cloud.status(), {state: 'known', locality: 'r/z', reason: undefined});
});

test('cloud › an answer in time ends the wait', async t => {
	const {clock, world, cloud} = setUp(t);
	const waited = cloud.untilKnown(never);
	world.answer = facts;
	await clock.advance(600);
	await waited;
	t.is(cloud.current()?.locality, 'r/z');
});

test('cloud › what is kept is used at once; only what has changed is told', async t => {
	const same = setUp(t, facts);
	await same.cloud.untilKnown(never);
	t.is(same.cloud.status().state, 'kept');
	same.world.answer = facts;
	await same.clock.advance(2000);
	await until('known', () => same.cloud.status().state === 'known');
	t.deepEqual(same.world.heard, []);
	t.deepEqual(same.world.saved, []);
	const moved = setUp(t, facts);
	moved.world.answer = {...facts, locality: 'r/y'};
	await moved.clock.advance(2000);
	await until('known', () => moved.cloud.status().state === 'known');
	t.deepEqual(moved.world.heard, [{...facts, locality: 'r/y'}]);
});

test('cloud › who stops does not wait', async t => {
	const {cloud} = setUp(t);
	const giveUp = new AbortController();
	const waited = cloud.untilKnown(giveUp.signal);
	giveUp.abort();
	await waited;
	await cloud.stop();
	t.is(cloud.current(), undefined);
});

test('cloud › kept over a reboot for its owner alone, and only for the machine and cloud it was said of', async t => {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-cloud-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	t.is(loadKept(directory), undefined);
	await saveKept(directory, {facts, marks: {macs: ['a']}});
	t.is((await stat(join(directory, 'cloud.json'))).mode & 0o777, 0o600);
	const kept = loadKept(directory);
	t.deepEqual(kept, {facts, marks: {macs: ['a']}});
	t.deepEqual(
		trustKept(kept, 'aws', () => false),
		facts,
	);
	t.is(
		trustKept(kept, 'aws', () => true),
		undefined,
	);
	t.is(
		trustKept(kept, 'gce', () => false),
		undefined,
	);
	for (const damaged of ['', '{"format":2}', '{"format":1,"facts":{"cloud":"aws"}}', '[]', 'null']) {
		await writeFile(join(directory, 'cloud.json'), damaged);
		t.is(loadKept(directory), undefined);
	}
});
