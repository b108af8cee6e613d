import {readFile, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import test from 'ava';
import {lookAtMachine} from '../../../src/registration/index.ts';
import {partsOf, startMesh, until} from '../../support/mesh.ts';

test.serial('copy › a state directory of another machine is noticed, and its key replaced', async t => {
	const {productUuid, instanceId, macs} = lookAtMachine();
	if (!productUuid && !instanceId && macs.length === 0) {
		t.log('skipped: nothing tells this machine from another');
		t.pass();
		return;
	}
	const mesh = await startMesh(t);
	const vm = mesh.workload('vm');
	const path = join(vm.stateDir, 'machine.json');
	const noted = await until('the marks', () => readFile(path, 'utf8'));
	const {serial} = partsOf(await vm.status()).identity;
	t.is(await vm.stop(), 0);
	const other = {
		...(productUuid && {productUuid: 'other'}),
		...(instanceId && {instanceId: 'other'}),
		macs: ['02:00:00:00:00:09'],
	};
	await writeFile(path, JSON.stringify({format: 1, marks: other}));
	vm.start();
	await vm.until('another certificate', report => ![undefined, serial].includes(partsOf(report).identity?.serial));
	await until('the marks of this machine', async () => (await readFile(path, 'utf8')) === noted);
	t.regex(vm.log(), /written on another machine \(a cloned or moved disk\)/);
	const after = await vm.untilReady();
	t.deepEqual(after.parts['machine'], {});
});
