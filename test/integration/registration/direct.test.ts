import {execFile} from 'node:child_process';
import {once} from 'node:events';
import {createServer} from 'node:http';
import type {AddressInfo} from 'node:net';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {type Kubernetes, rulesFor, startKubernetes} from '../../support/kubernetes.ts';
import {startLoad} from '../../support/load.ts';
import {assertNoneFailed} from '../../support/loads.ts';
import {gateOf, type Mesh, type MeshOptions, namespace, partsOf, startMesh, until} from '../../support/mesh.ts';

interface Condition {
	readonly type: string;
	readonly status: string;
	readonly message?: string;
	readonly lastProbeTime: string;
}

const entryOf = ({api}: Kubernetes, name = 'vm-127.0.1.11') => {
	const found = api.entries().find(({metadata}) => metadata.name === name);
	const {annotations = {}, labels = {}} = (found?.metadata ?? {}) as {
		annotations?: Record<string, string>;
		labels?: Record<string, string>;
	};
	const conditions = (found?.status?.['conditions'] ?? []) as unknown as Condition[];
	return found && {...found, annotations, labels, conditions};
};

async function setUp(t: ExecutionContext, options: MeshOptions = {}) {
	const kubernetes = await startKubernetes(t, namespace);
	kubernetes.api.apply('WorkloadGroup', {
		metadata: {name: 'vm', namespace},
		spec: {
			metadata: {labels: {app: 'vm', tier: 'shop'}, annotations: {note: 'of the group'}},
			template: {serviceAccount: 'vm-sa', ports: {http: 8080}, weight: 7, network: 'net-1'},
		},
	});
	const mesh = await startMesh(t, {
		...options,
		flagsOf: (name, made) => {
			kubernetes.feed(made.sandbox);
			return [...(name === 'vm' ? kubernetes.flags : []), ...(options.flagsOf?.(name, made) ?? [])];
		},
	});
	return {kubernetes, mesh, vm: mesh.workload('vm')};
}

/** Streams of the VM, none of which may name a group: istiod would make an entry of its own. */
const assertNoneOfIstiod = (t: ExecutionContext, {sandbox}: Mesh) =>
	t.deepEqual(
		sandbox
			.workloadEntries()
			.filter(({nodeName, annotations}) => nodeName === 'vm' && annotations['istio.io/connectedAt']),
		[],
	);

test.serial(
	'direct › the entry is made from the group, its health told, taken over after kill -9, and taken away by a stop that loses nothing',
	async t => {
		let isWell = true;
		const app = createServer((_, response) => response.writeHead(isWell ? 200 : 500).end()).listen(0, '127.0.0.1');
		await once(app, 'listening');
		t.teardown(() => app.close());
		const {port} = app.address() as AddressInfo;
		const probe = {httpGet: {host: '127.0.0.1', port}, periodSeconds: 1, failureThreshold: 1};
		const {kubernetes, mesh, vm} = await setUp(t, {
			probes: {vm: probe},
			workloads: {cluster: 'cluster', vm: 'vm'},
			flagsOf: name => (name === 'vm' ? ['--proxy-termination-drain', '3s', '--workload-locality', 'r/z'] : []),
		});
		const made = entryOf(kubernetes)!;
		t.like(made.spec, {
			...{address: '127.0.1.11', serviceAccount: 'vm-sa', ports: {http: 8080}, weight: 7},
			...{network: 'net-1', locality: 'r/z'},
		});
		t.like(made.labels, {app: 'vm', tier: 'shop', 'service.istio.io/workload-name': 'vm'});
		t.like(made.annotations, {
			note: 'of the group',
			'onramp/machine': 'vm',
			'proxy.istio.io/health-checks-enabled': 'true',
		});
		t.deepEqual(
			Object.keys(made.annotations).filter(key => key.startsWith('istio.io/')),
			[],
			'nothing by which istiod takes it for its own',
		);
		assertNoneOfIstiod(t, mesh);
		await vm.until('seen by callers', report => partsOf(report).registration.summary === 'registered');

		isWell = false;
		await until('unhealthy', () => entryOf(kubernetes)?.conditions[0]?.status === 'False');
		t.regex(entryOf(kubernetes)!.conditions[0]!.message!, /^readinessProbe: HTTP status 500$/);
		isWell = true;
		await until('healthy again', () => entryOf(kubernetes)?.conditions[0]?.status === 'True');
		t.is(entryOf(kubernetes)!.conditions.length, 1);
		t.is(entryOf(kubernetes)!.conditions[0]!.message, undefined);

		vm.signal('SIGKILL');
		await vm.exit;
		t.is(entryOf(kubernetes)!.metadata.uid, made.metadata.uid, 'a crash leaves it');
		vm.start();
		await vm.untilReady();
		await vm.until('seen by callers', report => partsOf(report).registration.summary === 'registered');
		t.is(entryOf(kubernetes)!.metadata.uid, made.metadata.uid, 'the next agent goes on with it');
		t.is(entryOf(kubernetes)!.metadata.generation, made.metadata.generation);

		// Somebody deletes it, somebody else spoils it: it is put right.
		kubernetes.api.remove('WorkloadEntry', namespace, 'vm-127.0.1.11');
		await until('made anew', () => entryOf(kubernetes)?.conditions[0]?.status === 'True');
		kubernetes.api.apply('WorkloadEntry', {metadata: {name: 'vm-127.0.1.11', namespace}, spec: {address: '10.9.9.9'}});
		await until('put right', () => entryOf(kubernetes)?.spec?.['address'] === '127.0.1.11');
		await until('traffic again', async () => partsOf(await vm.status()).registration.summary === 'registered');

		const load = startLoad({port: mesh.port('vm', 'cluster'), perSecond: 40});
		const stopped = vm.stop();
		await until('gone from the API', () => entryOf(kubernetes) === undefined);
		t.not(vm.envoyPid(), undefined, 'while Envoy serves what is under way');
		const before = load.result().sent;
		await until('more requests', () => load.result().sent > before + 20);
		assertNoneFailed(t, {out: await load.stop()});
		t.is(await stopped, 0);
		t.regex(kubernetes.api.requests.at(-1)!, /^delete workloadentries vm-127\.0\.1\.11 200$/);
	},
);

test.serial('direct › a stop loses no request of callers, though the entry has no health and goes at once', async t => {
	const {kubernetes, mesh, vm} = await setUp(t, {
		workloads: {cluster: 'cluster', vm: 'vm', other: 'vm'},
		flagsOf: name => (name === 'vm' ? ['--proxy-termination-drain', '2s'] : []),
	});
	t.deepEqual(entryOf(kubernetes)!.conditions, []);
	const load = startLoad({port: mesh.port('cluster', 'vm'), perSecond: 40});
	await until('some requests', () => load.result().sent > 40);
	t.is(await vm.stop(), 0);
	const report = await load.stop();
	assertNoneFailed(t, {in: report});
	t.is(entryOf(kubernetes), undefined);
});

test.serial('direct › with the API away at the start: says so once, and registers when it is back', async t => {
	const {kubernetes, mesh, vm} = await setUp(t);
	await vm.stop();
	await kubernetes.api.close();
	const before = vm.log().length;
	vm.start();
	const report = await vm.until('away', each => /ECONNREFUSED/.test(gateOf(each, 'registration').reason));
	t.false(gateOf(report, 'registration').open);
	t.is(partsOf(report).registration.state, 'connecting');
	await vm.until('some tries', each => (partsOf(each).registration as unknown as {attempts: number}).attempts > 2);
	t.is(
		vm
			.log()
			.slice(before)
			.match(/the WorkloadEntry is not as it should be/g)?.length,
		1,
	);
	await kubernetes.api.open();
	await vm.command('retry');
	await vm.untilReady();
	t.is(entryOf(kubernetes)?.spec?.['address'], '127.0.1.11');

	// Now it has been there: a reboot without the API is no reason to be unready.
	await kubernetes.api.close();
	vm.signal('SIGKILL');
	await vm.exit;
	vm.start();
	const away = await vm.untilReady();
	t.regex(gateOf(away, 'registration').reason, /^mesh\/vm-127\.0\.1\.11, not confirmed: /);
	t.is(partsOf(away).registration.state, 'away');
	await kubernetes.api.open();
	await vm.command('retry');
	await vm.until('registered', each => partsOf(each).registration?.state === 'registered');
	assertNoneOfIstiod(t, mesh);

	// A stop does not wait for an API that is not there, and says what it leaves.
	await kubernetes.api.close();
	t.is(await vm.stop(), 0);
	t.regex(
		vm.log(),
		/the WorkloadEntry is left behind, and callers may still be sent here .*kubectl delete workloadentry/,
	);
	await kubernetes.api.open();
	t.not(entryOf(kubernetes), undefined);
});

test.serial(
	'direct › refused: for want of rights, of the group, by another machine with the name; each is said, and mended without a restart',
	async t => {
		const {kubernetes, vm} = await setUp(t);
		const {api} = kubernetes;
		const user = {name: 'vm', rules: rulesFor(namespace)};
		await vm.stop();
		api.setUser('vm-token', {...user, rules: [{namespace, resources: ['workloadgroups'], verbs: ['get']}]});
		vm.start();
		const forbidden = await vm.until('refused', each => partsOf(each).registration?.state === 'refused');
		const gate = gateOf(forbidden, 'registration');
		t.false(gate.open);
		t.regex(gate.reason, /the verb "get" on workloadentries is missing/);
		t.regex(gate.hint!, /^sed s\/NAMESPACE\/mesh\/ \S+\/registration\.yaml \| kubectl apply -f -/);

		// It exits with 1, as it should.
		const {stdout} = await promisify(execFile)(process.execPath, [vm.options.agentPath, 'doctor', ...vm.flags]).catch(
			(error: {stdout: string}) => error,
		);
		t.regex(stdout, /kubernetes .*WorkloadGroup mesh\/vm is there/);
		t.regex(stdout, /get workloadentries vm-127\.0\.1\.11 .*the verb "get" on workloadentries is missing/);

		api.setUser('vm-token', undefined);
		await vm.command('retry');
		await vm.until('unknown', each =>
			/the API does not know us by the token in /.test(gateOf(each, 'registration').reason),
		);
		api.setUser('vm-token', user);
		api.remove('WorkloadGroup', namespace, 'vm');
		await vm.command('retry');
		await vm.until('no group', each => partsOf(each).registration?.state === 'waiting for group');
		api.apply('WorkloadGroup', {
			metadata: {name: 'vm', namespace},
			spec: {metadata: {labels: {app: 'vm'}}, template: {}},
		});

		const theirs = api.apply('WorkloadEntry', {
			metadata: {
				name: 'vm-127.0.1.11',
				namespace,
				annotations: {'onramp/instance': '00000000-0000-4000-8000-000000000000', 'onramp/machine': 'twin'},
			},
			spec: {address: '127.0.1.11'},
		});
		await vm.command('retry');
		const foreign = await vm.until('somebody else', each =>
			/belongs to another machine \(twin,/.test(gateOf(each, 'registration').reason),
		);
		t.false(foreign.ready);
		t.is(entryOf(kubernetes)!.metadata.resourceVersion, theirs.metadata.resourceVersion, 'it is not touched');
		await vm.stop();
		t.is(entryOf(kubernetes)!.metadata.resourceVersion, theirs.metadata.resourceVersion, 'nor by a stop');
		vm.start();
		await vm.until('somebody else', each => partsOf(each).registration?.state === 'refused');
		api.remove('WorkloadEntry', namespace, 'vm-127.0.1.11');
		await vm.command('retry');
		await vm.untilReady();
		t.is(entryOf(kubernetes)!.annotations['onramp/machine'], 'vm');
		t.is(
			entryOf(kubernetes)!.spec?.['serviceAccount'],
			'vm-sa',
			'without one in the template, ours: callers must know whom they speak to',
		);
	},
);

test.serial('direct › maintenance without health takes the entry away, and ready brings it back', async t => {
	const {kubernetes, vm} = await setUp(t);
	await vm.command('unready', {reason: 'disk'});
	await until('gone', () => entryOf(kubernetes) === undefined);
	const report = await vm.until('withdrawn', each => partsOf(each).registration?.state === 'withdrawn');
	t.true(report.ready);
	vm.signal('SIGKILL');
	await vm.exit;
	vm.start();
	await vm.untilReady();
	await vm.until('still withdrawn', each => partsOf(each).registration?.state === 'withdrawn');
	t.is(entryOf(kubernetes), undefined);
	await vm.command('ready', {});
	await until('back', () => entryOf(kubernetes));
});
