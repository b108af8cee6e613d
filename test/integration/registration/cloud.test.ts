import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {startKubernetes} from '../../support/kubernetes.ts';
import {type MeshOptions, namespace, partsOf, startMesh, until} from '../../support/mesh.ts';
import {type MetadataService, startMetadataService} from '../../support/metadata-service.ts';

const services: MetadataService[] = [];

async function setUp(t: ExecutionContext, {isHanging = false, ...options}: MeshOptions & {isHanging?: boolean} = {}) {
	const service = await startMetadataService(t, 'gce');
	service.hang(isHanging);
	services.push(service);
	const mesh = await startMesh(t, {
		...options,
		flagsOf: (name, made) => [
			...(name === 'vm' ? ['--workload-cloud', 'gce', '--workload-cloud-endpoint', service.endpoint] : []),
			...(options.flagsOf?.(name, made) ?? []),
		],
	});
	const localityOf = () => mesh.sandbox.workloadEntries().find(({nodeName}) => nodeName === 'vm')?.spec.locality;
	return {service, mesh, vm: mesh.workload('vm'), localityOf};
}

test.serial(
	'cloud › the entry is made with its locality, and again after a reboot at which the service hangs',
	async t => {
		const {service, mesh, vm, localityOf} = await setUp(t, {sandbox: {gracePeriodMs: 500}});
		t.is(localityOf(), 'europe-west4/europe-west4-a');
		await vm.stop();
		await until('the entry is gone', () => localityOf() === undefined);
		service.hang(true);
		vm.start();
		await vm.untilReady();
		t.is(localityOf(), 'europe-west4/europe-west4-a');
		t.like((await vm.status()).parts['cloud'], {state: 'kept', instanceId: '3561235981231234567'});
		t.notRegex(vm.log(), /going on without locality/);
		t.is(mesh.sandbox.workloadEntries().length, 2);
	},
);

test.serial(
	'cloud › the first registration waits for an answer that is late; certificate and Envoy do not',
	async t => {
		let release: Promise<void> | undefined;
		const {localityOf, vm} = await setUp(t, {
			isHanging: true,
			flags: ['--workload-cloud-wait', '1m'],
			flagsOf: (name, {sandbox, directory}) => {
				if (name !== 'vm') return [];
				release = until('all but the registration', () => {
					const log = readFileSync(join(directory, 'vm', 'agent.log'), 'utf8');
					return /identity: certificate received/.test(log) && /relay: envoy connected/.test(log);
				}).then(() => {
					t.false(sandbox.workloadEntries().some(({nodeName}) => nodeName === 'vm'));
					services.at(-1)!.hang(false);
				});
				return [];
			},
		});
		await release;
		t.is(localityOf(), 'europe-west4/europe-west4-a');
		t.notRegex(vm.log(), /going on without locality/);
	},
);

test.serial('cloud › a service that hangs at the first start holds up nothing for long, and says so', async t => {
	const {vm, localityOf} = await setUp(t, {isHanging: true, flags: ['--workload-cloud-wait', '300ms']});
	t.is(localityOf(), undefined);
	t.is(vm.log().match(/has not answered: going on without locality/g)?.length, 1);
	t.like((await vm.status()).parts['cloud'], {state: 'asking'});
});

test.serial(
	'cloud › with direct registration a locality that comes late comes into the entry; one that is set counts more',
	async t => {
		const kubernetes = await startKubernetes(t, namespace);
		const group = (name: string) => ({
			metadata: {name, namespace},
			spec: {metadata: {labels: {app: name}}, template: {}},
		});
		for (const name of ['vm', 'cluster']) kubernetes.api.apply('WorkloadGroup', group(name));
		const {service, vm, localityOf} = await setUp(t, {
			isHanging: true,
			flags: ['--workload-cloud-wait', '300ms'],
			flagsOf: (name, made) => {
				kubernetes.feed(made.sandbox);
				return name === 'vm' ? kubernetes.flags : [];
			},
		});
		t.is(localityOf(), undefined);
		service.hang(false);
		await until('the locality', () => localityOf() === 'europe-west4/europe-west4-a');
		await vm.stop();
		vm.start(['--workload-locality', 'here/there']);
		await vm.until('registered', each => partsOf(each).registration?.state === 'registered');
		t.is(localityOf(), 'here/there');
	},
);
