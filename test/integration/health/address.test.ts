import test from 'ava';
import {CapturedVm, startControlPlane} from '../../support/captured-mesh.ts';
import {type Parts, until} from '../../support/mesh.ts';
import {address, makeWorld, skippedWithout} from '../../support/netns.ts';

const second = '198.18.0.21';

test.serial('address › one that changes is registered without a restart of Envoy, and the old entry goes', async t => {
	if (skippedWithout(t, ['ip', 'setpriv'])) return;
	const world = await makeWorld(t, {ipv6: false});
	const {vm} = world;
	await vm.must('ip', ['link', 'add', 'docker0', 'type', 'bridge']);
	await vm.must('ip', ['addr', 'add', '172.17.0.1/16', 'dev', 'docker0']);
	await vm.must('ip', ['link', 'set', 'docker0', 'up']);
	const control = await startControlPlane(world, {a: {vip: '240.240.0.11'}});
	const agent = await CapturedVm.create(world, control, {group: 'a', vm, flags: ['--health-mode', 'always']});
	const entries = async () => {
		const list = (await control('workloadEntries')) as {
			spec: {address: string};
			status: {conditions: {status: string; message?: string}[]};
		}[];
		return Object.fromEntries(list.map(({spec, status}) => [spec.address, status.conditions[0]?.status]));
	};
	const parts = async () => (await agent.status()).parts as unknown as Parts & {registration: {address: string}};

	agent.start({isAdmin: false});
	await until('the entry', async () => (await entries())[address.vm.ip] === 'True', 60_000);
	const {pid} = (await parts()).proxy;
	t.is((await parts()).registration.address, address.vm.ip);

	// Both are there, and packets to the control plane come from the second.
	await vm.must('ip', ['addr', 'add', `${second}/24`, 'dev', 'eth0']);
	await vm.must('ip', [
		'route',
		'replace',
		'198.18.0.0/24',
		'dev',
		'eth0',
		'proto',
		'kernel',
		'scope',
		'link',
		'src',
		second,
	]);
	await until('the other entry', async () => (await entries())[second] === 'True', 60_000);
	await until('the end of the first', async () => !(address.vm.ip in (await entries())), 60_000);
	const after = await parts();
	t.like(after.registration, {address: second, entry: `mesh/a-${second}`, state: 'registered'});
	t.like(after.proxy, {pid, restarts: 0});
	t.regex(agent.log, /the address of this machine has changed: registering anew/);
	t.is(await agent.stop(), 0);
});

test.serial('address › without a way to the control plane no other one is taken', async t => {
	if (skippedWithout(t, ['ip', 'setpriv'])) return;
	const world = await makeWorld(t, {ipv6: false});
	const {vm} = world;
	const control = await startControlPlane(world, {a: {vip: '240.240.0.11'}});
	const agent = await CapturedVm.create(world, control, {group: 'a', vm});
	const status = async () =>
		((await agent.status()).parts as unknown as {registration: {address: string; state: string}}).registration;
	agent.start({isAdmin: false});
	await until('the entry', async () => (await status()).state === 'registered', 60_000);
	await vm.must('ip', ['link', 'add', 'other0', 'type', 'bridge']);
	await vm.must('ip', ['link', 'set', 'other0', 'up']);
	await vm.must('ip', ['addr', 'add', '10.99.0.1/24', 'dev', 'other0']);
	await vm.must('ip', ['link', 'set', 'eth0', 'down']);
	await vm.must('ip', ['addr', 'del', `${address.vm.ip}/24`, 'dev', 'eth0']);
	// The kernel has told of it, and a second look follows after a second.
	const looks = performance.now() + 3000;
	await until('two looks', () => performance.now() > looks);
	t.is((await status()).address, address.vm.ip);
	await vm.must('ip', ['addr', 'add', `${second}/24`, 'dev', 'eth0']);
	await vm.must('ip', ['link', 'set', 'eth0', 'up']);
	await until('the other address', async () => (await status()).address === second, 60_000);
	await until('the entry', async () => (await status()).state === 'registered', 60_000);
	t.pass();
});
