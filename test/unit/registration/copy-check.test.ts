import {mkdtempSync, rmSync, statSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {silentLogger} from '../../../src/log.ts';
import {startCopyCheck} from '../../../src/registration/copy-check.ts';
import {isOtherMachine, keepMachine, lookAtMachine, type MachineMarks} from '../../../src/registration/machine.ts';
import {FakeClock} from '../../support/fake-clock.ts';

const here: MachineMarks = {productUuid: 'a', instanceId: 'i-1', macs: ['02:00:00:00:00:01', '02:00:00:00:00:02']};

const compares = test.macro({
	title: (_, what: string) => `machine › ${what}`,
	exec: (t, _what: string, before: Partial<MachineMarks>, now: Partial<MachineMarks>, isOther: boolean) =>
		t.is(isOtherMachine({macs: [], ...before}, {macs: [], ...now}), isOther),
});
test(compares, 'the same', here, here, false);
test(compares, 'new network cards make no other machine of it', here, {...here, macs: ['02:00:00:00:00:09']}, false);
test(compares, 'the firmware counts most', here, {...here, productUuid: 'b'}, true);
test(compares, 'then the cloud', {instanceId: 'i-1', macs: here.macs}, {instanceId: 'i-2', macs: here.macs}, true);
test(compares, 'then network cards, of which one is enough', {macs: here.macs}, {macs: [here.macs[1]!]}, false);
test(compares, 'and none in common is another machine', {macs: here.macs}, {macs: ['02:00:00:00:00:09']}, true);
test(
	compares,
	'what only one of the two knows says nothing',
	{productUuid: 'a'},
	{instanceId: 'i-1', macs: here.macs},
	false,
);

async function setUp(before: MachineMarks | undefined, now: MachineMarks, renewals: readonly boolean[] = [true]) {
	const clock = new FakeClock();
	const saved: MachineMarks[] = [];
	let asked = 0;
	const check = await startCopyCheck({
		record: {
			load: async () => before,
			save: async marks => {
				saved.push(marks);
			},
		},
		marks: () => now,
		renewKey: async () => {
			if (!renewals[asked++]) throw new Error('the control plane is away');
		},
		clock,
		log: silentLogger,
	});
	return {clock, check, saved, asked: () => asked};
}

test('copy › the first start and new cards are noted, nothing else happens', async t => {
	for (const before of [undefined, {...here, macs: []}]) {
		const {check, saved, asked} = await setUp(before, here);
		t.deepEqual([saved, asked(), check.status().isCopy], [[here], 0, false]);
	}
	const {saved} = await setUp(here, here);
	t.deepEqual(saved, []);
});

test('copy › on another machine a key of its own is asked for until there is one, and only then is it noted', async t => {
	const other = {...here, productUuid: 'b'};
	const {clock, check, saved, asked} = await setUp(here, other, [false, false, true]);
	await clock.advance(0);
	t.like(check.status(), {isCopy: true});
	t.regex(check.status().reason!, /written on another machine/);
	await clock.advance(59_999);
	t.deepEqual([asked(), saved], [2, []]);
	await clock.advance(1);
	t.deepEqual([asked(), saved, check.status()], [3, [other], {isCopy: false}]);
	await clock.advance(3_600_000);
	t.is(asked(), 3);
	await check.stop();
});

test('machine › is kept for nobody else, and a record that is damaged is none', async t => {
	const directory = mkdtempSync(join(tmpdir(), 'onramp-machine-'));
	t.teardown(() => rmSync(directory, {recursive: true}));
	const record = keepMachine(directory);
	t.is(await record.load(), undefined);
	await record.save(here);
	t.deepEqual(await record.load(), here);
	t.is(statSync(join(directory, 'machine.json')).mode & 0o777, 0o600);
	for (const damaged of ['', '{"for', '[]', '{"format":1}', '{"format":2,"marks":{"macs":[]}}']) {
		writeFileSync(join(directory, 'machine.json'), damaged);
		t.is(await record.load(), undefined, damaged);
	}
	t.true(Array.isArray(lookAtMachine().macs));
});
