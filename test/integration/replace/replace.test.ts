import test from 'ava';
import type {LocalWorkload} from '../../../src/sandbox/local-workload.ts';
import {ask} from '../../support/load.ts';
import {assertNoneFailed, startLoads} from '../../support/loads.ts';
import {partsOf, startMesh, startTimeOf, until} from '../../support/mesh.ts';
import {enterOwnNetwork} from '../../support/own-network.ts';

/** A connection that waits in the queue of a listening socket when that is closed is reset, unless the kernel may hand it over. */
const whyNot = enterOwnNetwork({'net.ipv4.tcp_migrate_req': '1'});
const serial = whyNot === undefined ? test.serial : test.serial.skip;

test('replace › has a network in which the kernel hands waiting connections over', t => {
	t.log(whyNot === undefined ? 'yes' : `the others are skipped: ${whyNot}`);
	t.pass();
});

const isAlive = (pid: number): boolean => {
	try {
		startTimeOf(pid);
		return true;
	} catch {
		return false;
	}
};

const proxyOf = async (workload: LocalWorkload) => partsOf(await workload.status()).proxy;

// Its connections that last are given the time they need; here the load ends them.
const flags = ['--proxy-drain', '1s', '--proxy-replace-ceiling', '2m'];

serial('replace › under load a new Envoy takes over again and again, and no request fails', async t => {
	const mesh = await startMesh(t, {flags});
	const vm = mesh.workload('vm');
	const pids = [(await proxyOf(vm)).pid];
	const loads = startLoads(t, mesh);
	await loads.untilMore(5);
	await vm.command('proxy-replace');
	const second = await proxyOf(vm);
	t.not(second.pid, pids[0]);
	t.like(second, {state: 'running', retiring: pids[0], restarts: 0});
	pids.push(second.pid);
	await loads.untilMore(25);
	// The one connection that must last is still with the first.
	t.true(isAlive(pids[0]!));
	assertNoneFailed(t, await loads.stop());
	await until('the first one’s end', () => !isAlive(pids[0]!));

	const more = startLoads(t, mesh);
	await more.untilMore(5);
	await vm.command('proxy-replace');
	const third = await proxyOf(vm);
	t.false(pids.includes(third.pid));
	await more.untilMore(15);
	assertNoneFailed(t, await more.stop());
	await until('the second one’s end', () => !isAlive(pids[1]!));
	t.is((await proxyOf(vm)).retiring, undefined);
});

test.serial(
	'replace › an agent that returns with another bootstrap replaces Envoy without a failed request',
	async t => {
		const mesh = await startMesh(t, {flags});
		const vm = mesh.workload('vm');
		const {pid} = await proxyOf(vm);
		const loads = startLoads(t, mesh);
		await loads.untilMore(5);
		vm.signal('SIGKILL');
		await vm.exit;
		vm.start(['--proxy-stats-prefixes', 'more']);
		await vm.until('another Envoy', report => {
			const proxy = partsOf(report)?.proxy;
			return report.ready && proxy?.state === 'running' && proxy.pid !== pid;
		});
		await loads.untilMore(25);
		assertNoneFailed(t, await loads.stop());
		await until('the old one’s end', () => !isAlive(pid));
	},
);

serial('replace › an agent that is killed in the middle leaves nothing behind, and no request fails', async t => {
	const mesh = await startMesh(t, {flags});
	const vm = mesh.workload('vm');
	const first = (await proxyOf(vm)).pid;
	const loads = startLoads(t, mesh);
	await loads.untilMore(5);
	// While the second comes up.
	void vm.command('proxy-replace').catch(() => {});
	await until('the second', () => vm.log().includes('envoy is being replaced'));
	vm.signal('SIGKILL');
	await vm.exit;
	vm.start();
	await vm.untilReady();
	t.is((await proxyOf(vm)).pid, first);
	// While the first is on its way out.
	await vm.command('proxy-replace');
	const second = (await proxyOf(vm)).pid;
	vm.signal('SIGKILL');
	await vm.exit;
	vm.start();
	await vm.untilReady();
	t.like(await proxyOf(vm), {pid: second, adopted: true, retiring: first});
	await loads.untilMore(10);
	assertNoneFailed(t, await loads.stop());
	await until('the first one’s end', () => !isAlive(first));
	t.true((await ask({port: mesh.port('vm', 'cluster')})).callerId === mesh.idOf('vm'));
	// startMesh fails the test if anything of all this is left running in the end.
});
