import {createPrivateKey, X509Certificate} from 'node:crypto';
import {existsSync, readFileSync, realpathSync} from 'node:fs';
import {join} from 'node:path';
import test from 'ava';
import {assertNoneFailed, startLoads} from '../../support/loads.ts';
import {fetchServedSerial, isLong, partsOf, startMesh, until, watchServedSerials} from '../../support/mesh.ts';

const everyMs = isLong ? 10_000 : 2500;
const durationMs = isLong ? 120_000 : 27_500;
const rotations = 10;

test.serial(
	`rotation › none of the requests fails while certificates are replaced every ${everyMs / 1000} s`,
	async t => {
		t.timeout(durationMs + 60_000);
		// Rotation comes at half of the life, give or take a tenth.
		const mesh = await startMesh(t, {sandbox: {certificateLifetimeMs: 2 * everyMs}});
		const {pid} = partsOf(await mesh.workload('vm').status()).proxy;
		const wire = {vm: watchServedSerials(mesh.inbound('vm')), cluster: watchServedSerials(mesh.inbound('cluster'))};
		const loads = startLoads(t, mesh);
		await new Promise(resolve => setTimeout(resolve, durationMs));
		await until(`${rotations} rotations on both sides`, () =>
			[wire.vm, wire.cluster].every(({serials}) => serials.size > rotations),
		);
		assertNoneFailed(t, await loads.stop());
		const [vmSerials, clusterSerials] = [await wire.vm.stop(), await wire.cluster.stop()];
		t.log(`${vmSerials.length} certificates of the VM and ${clusterSerials.length} of the cluster on the wire`);
		const {identity, proxy} = partsOf(await mesh.workload('vm').status());
		t.is(identity.state, 'serving');
		t.is(proxy.pid, pid, 'the same Envoy');
		t.true(mesh.sandbox.counts.issuedByCertificate >= 2 * rotations);
	},
);

test.serial('rotation › none of the requests fails while the root is replaced', async t => {
	const mesh = await startMesh(t, {
		sandbox: {isMultiRoot: true},
		flags: ['--relay-proxy-config', 'true', '--identity-trial-delay', '1s'],
	});
	const {sandbox} = mesh;
	const workloads = [mesh.workload('vm'), mesh.workload('cluster')];
	for (const workload of workloads)
		await workload.until('the trial', report => partsOf(report).identity.tokenlessRenewal === 'works');
	const rootOf = (pem: string) => new X509Certificate(pem).fingerprint256;
	const before = rootOf(sandbox.rootPem());
	const loads = startLoads(t, mesh);

	await sandbox.faults.rotateRoot();
	// The new root has to be trusted everywhere before anyone shows a certificate of it.
	for (const workload of workloads)
		await workload.until('both roots', report => partsOf(report).identity.rootCount === 2);
	for (const workload of workloads) {
		const {serial} = partsOf(await workload.status()).identity;
		await workload.command('rotate');
		const {identity} = partsOf(
			await workload.until('a new pair', report => partsOf(report).identity.serial !== serial),
		);
		const at = mesh.inbound(workload.options.name);
		await until('it on the wire', async () => (await fetchServedSerial(at)) === identity.serial);
	}

	await sandbox.faults.dropOldRoot();
	t.not(rootOf(sandbox.rootPem()), before);
	sandbox.faults.closeConnections();
	for (const workload of workloads) {
		await workload.command('rotate');
		await workload.until('one root', report => partsOf(report).identity.rootCount === 1);
		await workload.until(
			'the stream, trusted by the new root',
			report => partsOf(report).relay.upstream.state === 'connected',
		);
	}
	// New handshakes with nothing but the new root.
	await loads.untilMore(20);
	assertNoneFailed(t, await loads.stop());
});

test.serial('rotation › a pair read through current/ fits together at every moment', async t => {
	const outputOf = (directory: string) => join(directory, 'certs');
	const mesh = await startMesh(t, {
		flagsOf: (name, {directory}) => (name === 'vm' ? ['--identity-output-dir', outputOf(directory)] : []),
	});
	const vm = mesh.workload('vm');
	// The agent serves a pair before it has written it.
	await until('the first pair', () => existsSync(join(outputOf(mesh.directory), 'current', 'cert-chain.pem')));
	const seen = new Set<string>();
	let reads = 0;
	let isDone = false;
	const reading = (async () => {
		while (!isDone) {
			const directory = realpathSync(join(outputOf(mesh.directory), 'current'));
			const certificate = new X509Certificate(readFileSync(join(directory, 'cert-chain.pem')));
			// Time for a rotation to come between the two.
			await new Promise(resolve => setImmediate(resolve));
			const key = createPrivateKey(readFileSync(join(directory, 'key.pem')));
			if (!certificate.checkPrivateKey(key)) throw new Error(`read ${reads}: key and certificate do not fit`);
			seen.add(certificate.serialNumber);
			reads++;
		}
	})();
	let failure: unknown;
	reading.catch((error: unknown) => {
		failure = error;
	});
	for (let i = 0; i < 10; i++) {
		await vm.command('rotate');
		const {serial} = partsOf(await vm.status()).identity;
		await until(`certificate ${serial} in the directory`, () => failure !== undefined || seen.has(serial)).catch(
			(error: unknown) => t.fail(`${error}\n${vm.log()}`),
		);
		t.is(failure, undefined);
	}
	isDone = true;
	await reading;
	t.log(`${reads} reads, ${seen.size} certificates`);
	t.true(seen.size >= 10);
});
