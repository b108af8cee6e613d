import test from 'ava';
import {namespace, partsOf, startMesh, until} from '../../support/mesh.ts';

test.serial(
	'self-check › the agent sees its own entry in the mesh, has it made anew when it is lost, and knows when nobody selects it',
	async t => {
		const mesh = await startMesh(t);
		const {sandbox} = mesh;
		const vm = mesh.workload('vm');
		const untilSummary = (summary: string) =>
			vm.until(summary, report => partsOf(report).registration.summary === summary, 60_000);
		const seen = await vm.until('its proof', report => /sent here/.test(partsOf(report).registration.proof ?? ''));
		t.like(partsOf(seen).registration, {
			summary: 'registered',
			proof: `callers are sent here: http-vm.${namespace}.svc.cluster.local, tcp-vm.${namespace}.svc.cluster.local`,
			problems: [],
		});

		const entry = sandbox.workloadEntries().find(({nodeName}) => nodeName === 'vm')!;
		sandbox.deleteWorkloadEntry(namespace, entry.name);
		await until(
			'the entry to be made anew',
			() => sandbox.workloadEntries().some(({name}) => name === entry.name),
			60_000,
		);
		await vm.until('its proof', report => /sent here/.test(partsOf(report).registration.proof ?? ''));

		for (const kind of ['http', 'tcp']) sandbox.removeService(`${kind}-vm.${namespace}.svc.cluster.local`);
		const lost = await untilSummary('registered, not selected by any service');
		t.true(lost.ready);
		t.regex(partsOf(lost).registration.proof!, /^no service that this VM can see has our address/);
		sandbox.addService({
			host: `http-vm.${namespace}.svc.cluster.local`,
			namespace,
			port: 80,
			targetPort: 8080,
			protocol: 'http',
			selector: {app: 'vm'},
		});
		await untilSummary('registered');
	},
);

test.serial('self-check › a group that is not there is waited for, and used when it is', async t => {
	const mesh = await startMesh(t, {flags: ['--control-plane-backoff-max', '1s'], sandbox: {gracePeriodMs: 500}});
	const {sandbox} = mesh;
	const vm = mesh.workload('vm');
	await sandbox.faults.stop();
	for (const {name} of sandbox.workloadEntries()) sandbox.deleteWorkloadEntry(namespace, name);
	sandbox.removeWorkloadGroup(namespace, 'vm');
	await sandbox.faults.restart();
	const waiting = await vm.until('waiting', report => partsOf(report).registration.state === 'waiting for group');
	t.is(partsOf(waiting).registration.summary, 'waiting for group');
	sandbox.addWorkloadGroup({name: 'vm', namespace, serviceAccount: 'vm-sa', labels: {app: 'vm'}});
	await vm.until('its proof', report => /sent here/.test(partsOf(report).registration.proof ?? ''));
	t.pass();
});
