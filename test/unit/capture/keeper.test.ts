import test from 'ava';
import {type CaptureKeeper, startCaptureKeeper} from '../../../src/capture/keeper.ts';
import {lookAt} from '../../../src/capture/look.ts';
import type {StepReply, StepRequest} from '../../../src/capture/step.ts';
import {Metrics, Readiness} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {FakeClock} from '../../support/fake-clock.ts';
import {settings} from './settings.ts';

const nothing = {commands: [], files: []};
const isIn: StepReply = {
	kind: 'in',
	rules: {
		backend: 'nft',
		count: 60,
		plan: 'p',
		notes: [],
		look: {...nothing, seen: await lookAt(nothing)},
		repaired: [],
	},
	isChanged: true,
	wasOnTrial: false,
};
const failed = (code: string): StepReply => ({kind: 'failed', code, message: 'no', hint: 'do'});

interface World {
	readonly clock: FakeClock;
	readonly readiness: Readiness;
	readonly keeper: CaptureKeeper;
	/** What it had done, and drains. */
	readonly done: string[];
	answers: StepReply[];
	openAll(): void;
	gate(): {readonly isOpen: boolean; readonly reason: string};
}

function start(changes: {readonly isLeft?: boolean; readonly onAgentDown?: 'hold' | 'bypass'} = {}): World {
	const clock = new FakeClock();
	const readiness = new Readiness(['identity', 'configuration', 'proxy', 'registration', 'capture'], () => clock.now());
	const done: string[] = [];
	const world = {clock, readiness, done, answers: [] as StepReply[]};
	const keeper = startCaptureKeeper({
		config: settings({onAgentDown: changes.onAgentDown ?? 'hold'}),
		controlPlane: [],
		address: '198.18.0.11',
		isLeft: changes.isLeft ?? false,
		readiness,
		gate: readiness.gate('capture'),
		drain: async () => {
			done.push('drain');
		},
		clock,
		metrics: new Metrics(),
		log: silentLogger,
		listen: () => ({isListening: () => true, stop: () => {}}),
		perform: async ({kind}: StepRequest) => {
			done.push(kind);
			return kind === 'remove'
				? {kind: 'removed', backends: ['nft'], isBlocking: false, ended: 0, orphaned: 0}
				: (world.answers.shift() ?? isIn);
		},
	});
	return Object.assign(world, {
		keeper,
		openAll: () => {
			for (const name of ['identity', 'configuration', 'proxy']) readiness.gate(name).open();
		},
		gate: () => readiness.states().find(({name}) => name === 'capture')!,
	});
}

test('keeper › waits for Envoy and configuration, and not for the registration', async t => {
	const world = start();
	await world.clock.advance(100);
	t.regex(world.gate().reason, /ready: identity, configuration, proxy$/);
	world.openAll();
	await world.clock.advance(100);
	t.deepEqual(world.done, ['apply']);
	t.like(world.gate(), {isOpen: true, reason: '60 rules with nft'});
	await world.keeper.stop();
});

test('keeper › what fails is tried again, later each time; the gate says why', async t => {
	const world = start();
	world.answers = [failed('capture.busy'), failed('capture.busy'), isIn];
	world.openAll();
	await world.clock.advance(100);
	t.like(world.gate(), {isOpen: false, reason: 'no', hint: 'do'});
	await world.clock.advance(1800);
	t.is(world.done.length, 1);
	await world.clock.advance(200);
	t.is(world.done.length, 2);
	await world.clock.advance(3800);
	t.is(world.done.length, 2);
	await world.clock.advance(300);
	t.true(world.gate().isOpen);
	await world.keeper.stop();
});

test('keeper › what was undone is not tried again until somebody asks for it', async t => {
	const world = start();
	world.answers = [failed('capture.rolled_back')];
	world.openAll();
	await world.clock.advance(3_600_000);
	t.deepEqual(world.done, ['apply']);
	world.keeper.retryNow();
	await world.clock.advance(100);
	t.deepEqual(world.done, ['apply', 'apply']);
	t.true(world.gate().isOpen);
	await world.keeper.stop();
});

test('keeper › a stop drains before it takes rules away, also what an earlier agent has put in', async t => {
	const world = start();
	await world.keeper.stop();
	t.deepEqual(world.done, ['drain', 'remove']);
	t.is(world.keeper.status().state, 'removed');
});

test('keeper › rules stay when Envoy does', async t => {
	const world = start({isLeft: true});
	world.openAll();
	await world.clock.advance(100);
	await world.keeper.stop();
	t.deepEqual(world.done, ['apply']);
	t.is(world.keeper.status().state, 'left');
});

test('keeper › under hold a dead Envoy changes nothing; under bypass the rules go after a while, and come back', async t => {
	for (const [onAgentDown, expected] of [
		['hold', ['apply']],
		['bypass', ['apply', 'remove']],
	] as const) {
		const world = start({onAgentDown});
		world.openAll();
		await world.clock.advance(100);
		world.readiness.gate('proxy').close('gone');
		await world.clock.advance(2000);
		t.deepEqual(world.done, ['apply']);
		await world.clock.advance(10_000);
		t.deepEqual(world.done, [...expected]);
		world.openAll();
		await world.clock.advance(100);
		t.true(world.gate().isOpen);
		await world.keeper.stop();
	}
});
