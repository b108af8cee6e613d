import test from 'ava';
import {ComponentGroup, never, type Running} from '../../../src/lifecycle/index.ts';

function makePart(name: string, stopped: string[]): Running {
	return {
		finished: never,
		stop: async () => {
			stopped.push(name);
		},
	};
}

test('component group › stops in reverse of the order of starting', async t => {
	const stopped: string[] = [];
	const group = new ComponentGroup();
	for (const name of ['a', 'b', 'c']) await group.start(name, () => makePart(name, stopped));
	await group.stop();
	t.deepEqual(stopped, ['c', 'b', 'a']);
});

test('component group › a part that was moved to the end is stopped before those that were there', async t => {
	const stopped: string[] = [];
	const group = new ComponentGroup();
	for (const name of ['a', 'b', 'c']) await group.start(name, () => makePart(name, stopped));
	group.moveToEnd('a');
	await group.start('d', () => makePart('d', stopped));
	await group.stop();
	t.deepEqual(stopped, ['d', 'a', 'c', 'b']);
});

test('component group › a part still on its way when the group stops is waited for and stopped', async t => {
	const stopped: string[] = [];
	const group = new ComponentGroup();
	const {promise, resolve} = Promise.withResolvers<Running>();
	const starting = group.start('slow', () => promise);
	const stopping = group.stop();
	resolve(makePart('slow', stopped));
	await Promise.all([starting, stopping]);
	t.deepEqual(stopped, ['slow']);
});

test('component group › one that fails to start, or to stop, does not keep the others from stopping', async t => {
	const stopped: string[] = [];
	const group = new ComponentGroup();
	await group.start('a', () => makePart('a', stopped));
	await t.throwsAsync(
		group.start('b', () => Promise.reject(new Error('no'))),
		{message: 'no'},
	);
	await group.start('c', () => ({finished: never, stop: () => Promise.reject(new Error('stuck'))}));
	await group.stop();
	t.deepEqual(stopped, ['a']);
});
