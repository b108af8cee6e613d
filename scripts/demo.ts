// The demo behind scripts/demo: an embedded control plane, a "cluster" workload and a "VM", each with its own agent and
// Envoy; every step is checked and timed. As root also traffic capture, in network namespaces. With --once it ends after
// the last step.
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {type Echo, type EchoApp, startEchoApp} from '../src/sandbox/echo-app.ts';
import {type Sandbox, startSandbox} from '../src/sandbox/index.ts';
import {freePorts, LocalWorkload} from '../src/sandbox/local-workload.ts';
import {showCapture} from './demo-capture.ts';
import {check, interrupt, note, orInterrupted, printTable, retry, rows, step} from './demo-steps.ts';
import {ensureEnvoy} from './fetch-envoy.ts';
import {whyNoMachines} from './machines.ts';

const isOnce = process.argv.includes('--once');
const namespace = 'demo';
const cleanUps: (() => Promise<unknown>)[] = [];

interface Side {
	readonly app: EchoApp;
	readonly workload: LocalWorkload;
	readonly host: string;
	readonly id: string;
}

async function main(): Promise<void> {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-demo-'));
	cleanUps.push(() => rm(directory, {recursive: true, force: true}));
	const envoyPath = await ensureEnvoy();
	const [clusterOut, clusterIn, vmOut, vmIn, toVm, toCluster] = (await freePorts(6)) as [
		number,
		number,
		number,
		number,
		number,
		number,
	];
	const apps = {cluster: await startEchoApp('echo on the cluster'), vm: await startEchoApp('echo on the VM')};
	cleanUps.push(apps.cluster.stop, apps.vm.stop);

	const sandbox = await step('control plane up', async () => {
		const value = await startSandbox({
			mtls: 'strict',
			ports: {
				cluster: {outbound: clusterOut, inbound: clusterIn, interception: 'none'},
				vm: {outbound: vmOut, inbound: vmIn, interception: 'none'},
			},
		});
		cleanUps.push(() => value.stop());
		defineMesh(value, apps, {toVm, toCluster});
		return {value, result: `${value.address}, STRICT mutual TLS, Istio-only filters on, as istiod sends them`};
	});

	const cluster = await join_(sandbox, 'cluster', '127.0.1.10', apps.cluster, directory, envoyPath);
	const vm = await join_(sandbox, 'vm', '127.0.1.20', apps.vm, directory, envoyPath);

	await step('WorkloadEntry of the VM', async () => {
		const entry = sandbox.workloadEntries().find(({name}) => name === 'vm-127.0.1.20');
		check(entry !== undefined, 'no WorkloadEntry vm-127.0.1.20');
		return {
			value: undefined,
			result: `${entry!.namespace}/${entry!.name}, address ${entry!.spec.address}, ${JSON.stringify(entry!.labels)}`,
		};
	});
	await showTraffic('VM → cluster', toCluster, vm, cluster);
	await showTraffic('cluster → VM', toVm, cluster, vm);
	await showCertificate(vm);
	await showNoRejections(sandbox, [cluster, vm]);
	await rotateUnderLoad(vm, toCluster);

	const missing = whyNoMachines();
	if (missing) console.log(`          --    traffic capture is left out: it ${missing}`);
	else await showCapture(join(directory, 'capture'), envoyPath, cleanUps);

	printTable();
	if (missing)
		console.log(`\nWithout traffic capture, which ${missing}: here applications are told where their Envoy listens.`);
	if (!isOnce) await stayUp(sandbox, vm, cluster, {toVm, toCluster});
}

function defineMesh(
	sandbox: Sandbox,
	apps: {cluster: EchoApp; vm: EchoApp},
	bind: {toVm: number; toCluster: number},
): void {
	for (const name of ['cluster', 'vm'] as const) {
		const {port} = apps[name];
		sandbox.addWorkloadGroup({name, namespace, serviceAccount: `${name}-sa`, labels: {app: name}, ports: {http: port}});
		sandbox.addService({
			host: `echo-${name}.${namespace}.svc.cluster.local`,
			namespace,
			port: 80,
			targetPort: port,
			protocol: 'http',
			selector: {app: name},
			bindPort: name === 'cluster' ? {vm: bind.toCluster} : {cluster: bind.toVm},
		});
	}
}

/** A bundle in istioctl's format, `onramp join` with it, and the wait until every gate is open. */
async function join_(
	sandbox: Sandbox,
	name: string,
	address: string,
	app: EchoApp,
	directory: string,
	envoyPath: string,
): Promise<Side> {
	const bundle = await step(`bundle for the ${name}`, async () => {
		const value = await sandbox.writeBundle(join(directory, `${name}-bundle`), {group: name, namespace});
		return {value, result: 'cluster.env mesh.yaml root-cert.pem istio-token hosts'};
	});
	return step(`onramp join on the ${name}`, async () => {
		const workload = await LocalWorkload.create({
			name,
			directory: join(directory, name),
			bundle,
			address,
			envoyPath,
			agentPath: 'dist/onramp.cjs',
			command: 'join',
			flags: ['--proxy-termination-drain', '500ms'],
		});
		cleanUps.push(async () => {
			await workload.stop();
			await workload.destroy();
		});
		workload.start();
		const report = await orInterrupted(workload.untilReady());
		const identity = report.parts['identity'] as {spiffeId: string};
		return {
			value: {app, workload, host: `echo-${name}`, id: identity.spiffeId},
			result: `${identity.spiffeId}, Envoy ${(report.parts['proxy'] as {version: string}).version} serving`,
		};
	});
}

/** One plain HTTP request to the caller's own Envoy; the other side's application says whom it saw. */
async function ask(port: number, path = '/hello'): Promise<Echo> {
	const response = await fetch(`http://127.0.0.1:${port}${path}`, {
		signal: AbortSignal.timeout(5000),
		headers: {connection: 'close'},
	});
	check(response.status === 200, `HTTP ${response.status}: ${await response.clone().text()}`);
	return (await response.json()) as Echo;
}

async function showTraffic(name: string, port: number, caller: Side, called: Side): Promise<void> {
	await step(name, async () => {
		// The endpoint reaches the caller with the push that follows the registration.
		const echo = await retry(() => ask(port), 10_000);
		check(echo.callerId === caller.id, `the application saw ${echo.callerId || 'no identity'}, expected ${caller.id}`);
		check(echo.ownId === called.id, `it was received as ${echo.ownId || 'no identity'}, expected ${called.id}`);
		return {value: undefined, result: `"${echo.app}" saw ${echo.callerId}, received as ${echo.ownId}`};
	});
}

async function showCertificate(side: Side): Promise<void> {
	await step('certificate of the VM', async () => {
		const {serial, notAfter, nextRotationAt} = (await side.workload.status()).parts['identity'] as Record<
			string,
			string
		>;
		return {value: undefined, result: `serial ${serial}, valid until ${notAfter}, next rotation ${nextRotationAt}`};
	});
}

async function showNoRejections(sandbox: Sandbox, sides: readonly Side[]): Promise<void> {
	await step('stock Envoy takes everything', async () => {
		const nacks = sandbox.acks.all.filter(({error}) => error !== undefined);
		check(nacks.length === 0, `${nacks.length} updates refused: ${nacks[0]?.error?.message}`);
		const removed = new Set<string>();
		for (const {workload} of sides) {
			const relay = (await workload.status()).parts['relay'] as {removals: {name: string}[]};
			for (const {name} of relay.removals) removed.add(name);
		}
		check(removed.size > 0, 'nothing was taken out, although the control plane sends Istio-only filters');
		return {
			value: undefined,
			result: `${sandbox.acks.all.length} updates acknowledged, none refused; taken out: ${[...removed].sort().join(', ')}`,
		};
	});
}

/** New connections at a steady pace while the certificate is replaced three times. */
async function rotateUnderLoad(side: Side, port: number): Promise<void> {
	await step('rotation under load', async () => {
		const serials = new Set<string>();
		const hashes = new Set<string>();
		let [sent, failed] = [0, 0];
		let firstFailure = '';
		const pending: Promise<void>[] = [];
		const timer = setInterval(() => {
			sent++;
			pending.push(
				ask(port).then(
					({callerHash}) => {
						hashes.add(callerHash);
					},
					(error: unknown) => {
						failed++;
						firstFailure ||= String(error);
					},
				),
			);
		}, 10);
		for (let i = 0; i < 3; i++) {
			await orInterrupted(new Promise(resolve => setTimeout(resolve, 1000)));
			await side.workload.command('rotate');
			serials.add(((await side.workload.status()).parts['identity'] as {serial: string}).serial);
		}
		// Envoy keeps its connections and with them the certificate they began with; a burst makes it open new ones.
		await retry(async () => {
			const burst = await Promise.all(Array.from({length: 20}, () => ask(port, '/slow')));
			for (const {callerHash} of burst) hashes.add(callerHash);
			check(hashes.size > 1, 'the other side still sees the first certificate');
		}, 10_000);
		clearInterval(timer);
		await Promise.all(pending);
		check(failed === 0, `${failed} of ${sent} requests failed: ${firstFailure}`);
		check(serials.size === 3, `expected 3 new certificates, saw ${serials.size}`);
		return {
			value: undefined,
			result: `3 rotations, ${sent} requests, 0 lost; the other side saw ${hashes.size} certificates`,
		};
	});
}

async function stayUp(
	sandbox: Sandbox,
	vm: Side,
	cluster: Side,
	bind: {toVm: number; toCluster: number},
): Promise<void> {
	console.log(`
The mesh stays up until Ctrl-C. Look at it:
  as the VM          curl http://127.0.0.1:${bind.toCluster}/      (its Envoy sends it over mutual TLS to the cluster)
  as the cluster     curl http://127.0.0.1:${bind.toVm}/
  readiness          curl http://127.0.0.1:${vm.workload.ports.status}/readyz
  metrics            curl http://127.0.0.1:${vm.workload.ports.status}/stats/prometheus
  the agent's word   npx onramp status --run-dir ${vm.workload.runDir} --namespace ${namespace}
  logs               ${vm.workload.logPath}
                     ${cluster.workload.logPath}
  control plane      ${sandbox.address}
`);
	await orInterrupted(new Promise(() => {})).catch(() => {});
	console.log('\nstopping');
}

// For as long as it runs: whatever it has started by then is ended, and once is enough.
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, interrupt);

async function finish(): Promise<void> {
	for (const cleanUp of cleanUps.splice(0).reverse())
		await cleanUp().catch(error => console.error(`clean-up: ${String(error)}`));
	const failed = rows.filter(({isGood}) => !isGood).length;
	console.log(`demo: ${rows.length - failed} passed, ${failed} failed`);
	process.exit(failed === 0 ? 0 : 1);
}

main().then(finish, async (error: unknown) => {
	if (rows.every(({isGood}) => isGood)) note('demo', 0, String(error), false);
	await finish();
});
