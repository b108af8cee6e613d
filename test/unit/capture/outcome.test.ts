import {mkdtemp, rm, utimes, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {outcomePath, writeOutcome} from '../../../src/capture/outcome.ts';
import {startOutcomeGate} from '../../../src/capture/outcome-gate.ts';
import {Readiness} from '../../../src/lifecycle/readiness.ts';
import {createLogger} from '../../../src/log.ts';
import {FakeClock} from '../../support/fake-clock.ts';

async function makeGate(t: ExecutionContext, stateDir?: string) {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-outcome-'));
	const clock = new FakeClock();
	const readiness = new Readiness(['capture']);
	const part = startOutcomeGate({
		stateDir: stateDir ?? directory,
		gate: readiness.gate('capture'),
		clock,
		log: createLogger({level: 'silent', format: 'json'}),
	});
	t.teardown(async () => {
		await part.stop();
		await rm(directory, {recursive: true});
	});
	const changed = new Promise<void>(resolve => readiness.onChange(resolve));
	const untilChanged = async () => {
		const next = new Promise<void>(resolve => readiness.onChange(resolve));
		await clock.advance(2000);
		await next;
		return readiness.states()[0]!;
	};
	await changed;
	return {directory, part, untilChanged, state: () => readiness.states()[0]!};
}

test('outcome › the gate is closed until the rules are in, and says what is known of them', async t => {
	const {directory, part, untilChanged, state} = await makeGate(t);
	t.like(state(), {isOpen: false, reason: 'the rules are not in yet'});
	t.deepEqual({...part.status()}, {});

	await writeOutcome(directory, {state: 'failed', reason: 'nft: no such thing', hint: 'load the module'});
	t.like(await untilChanged(), {
		isOpen: false,
		reason: 'not in, all traffic goes past Envoy: nft: no such thing',
		hint: 'load the module',
	});

	await writeOutcome(directory, {state: 'in', backend: 'nft', rules: 58, plan: 'abc'});
	t.like(await untilChanged(), {isOpen: true, reason: '58 rules with nft'});
	t.like(part.status(), {state: 'in', plan: 'abc'});

	await writeOutcome(directory, {state: 'removed', reason: 'the rules were taken away'});
	t.like(await untilChanged(), {isOpen: false, reason: 'the rules were taken away'});

	await rm(outcomePath(directory));
	t.like(await untilChanged(), {isOpen: false, reason: 'the rules are not in yet'});
});

test('outcome › what cannot be read, as of a unit from before an upgrade, does not make the machine unready', async t => {
	const {directory, untilChanged} = await makeGate(t);
	await writeFile(outcomePath(directory), '{"state": "in", ');
	const {isOpen, reason} = await untilChanged();
	t.true(isOpen);
	t.regex(reason, /^not told by onramp-capture.service until its next start: /);
	// Not in the same moment as the first.
	await writeOutcome(directory, {state: 'in', backend: 'nft', rules: 1, plan: 'abc'});
	await utimes(outcomePath(directory), 1, 1);
	t.like(await untilChanged(), {isOpen: true, reason: '1 rules with nft'});
});
