import {X509Certificate} from 'node:crypto';
import {rm} from 'node:fs/promises';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import type {LocalWorkload} from '../../../src/sandbox/local-workload.ts';
import {assertNoneFailed, startLoads} from '../../support/loads.ts';
import {fetchServedSerial, type Mesh, partsOf, startMesh, until} from '../../support/mesh.ts';
import {certificateSecret, renderUpdate, rootsSecret, startSdsServer} from '../../support/sds-server.ts';
import {flagsOfFiles, makePair, mountPair, type Pair} from './pairs.ts';

const vmId = 'spiffe://cluster.local/ns/mesh/sa/vm-sa';
const otherId = 'spiffe://cluster.local/ns/mesh/sa/other-sa';
const serialOf = ({chain}: Pair) => new X509Certificate(chain).serialNumber;

/** How the certificates get to the agent of the VM, and how they are replaced. */
interface Delivery {
	readonly flags: (directory: string) => readonly string[];
	readonly put: (directory: string, pair: Pair) => Promise<void>;
}

const files: Delivery = {
	flags: directory => flagsOfFiles(join(directory, 'mounted')),
	put: (directory, pair) => mountPair(join(directory, 'mounted'), pair),
};

function sds(t: ExecutionContext): Delivery & {server: () => Awaited<ReturnType<typeof startSdsServer>>} {
	let server: Awaited<ReturnType<typeof startSdsServer>> | undefined;
	let updates = 0;
	return {
		flags: directory => ['--identity-source', 'sds', '--identity-socket', join(directory, 'sds.sock')],
		put: async (directory, {chain, key, roots}) => {
			server ??= await startSdsServer(t, join(directory, 'sds.sock'));
			await until('the agent to ask', () => server!.streams.length > 0);
			server.send(renderUpdate(String(++updates), [certificateSecret({chain, key}), rootsSecret(roots)]));
		},
		server: () => server!,
	};
}

/** A mesh whose VM has no token: its certificates come by the delivery alone. */
async function startWith(t: ExecutionContext, {flags, put}: Delivery) {
	let first: Promise<Pair> | undefined;
	const mesh: Mesh = await startMesh(t, {
		flagsOf: (name, {sandbox, directory}) => {
			if (name !== 'vm') return [];
			first = makePair(sandbox, vmId);
			void first.then(pair => put(directory, pair));
			return [...flags(directory), '--token-path', join(directory, 'none')];
		},
	});
	return {mesh, vm: mesh.workload('vm'), first: (await first)!};
}

async function replacesUnderLoad(t: ExecutionContext, delivery: Delivery): Promise<void> {
	const {mesh, vm, first} = await startWith(t, delivery);
	const before = partsOf(await vm.status());
	t.is(before.identity.serial, serialOf(first));
	t.is(mesh.sandbox.counts.issuedByToken, 1, 'that of the cluster workload');
	const loads = startLoads(t, mesh);
	for (let i = 0; i < 3; i++) {
		const pair = await makePair(mesh.sandbox, vmId);
		await delivery.put(mesh.directory, pair);
		await until('it on the wire', async () => (await fetchServedSerial(mesh.inbound('vm'))) === serialOf(pair));
		await loads.untilMore(5);
	}
	assertNoneFailed(t, await loads.stop());
	t.is(partsOf(await vm.status()).proxy.pid, before.proxy.pid);
}

/** The reason given, once there is one; the old pair is served all the while. */
async function refuses(t: ExecutionContext, delivery: Delivery, mesh: Mesh, pair: Pair, reason: RegExp): Promise<void> {
	const vm = mesh.workload('vm');
	const {serial} = partsOf(await vm.status()).identity;
	await delivery.put(mesh.directory, pair);
	const report = await vm.until(`refused: ${reason}`, seen => reason.test(errorOf(seen)), 30_000);
	t.is(partsOf(report).identity.serial, serial);
	t.is(partsOf(report).identity.state, 'serving-stale');
	t.true(report.ready);
	t.is(await fetchServedSerial(mesh.inbound('vm')), serial);
	t.is(warningsOf(vm, reason), 1, `told once: ${reason}`);
}

const errorOf = (report: Awaited<ReturnType<LocalWorkload['status']>>) =>
	(partsOf(report).identity.lastError as {message?: string} | undefined)?.message ?? '';

const warningsOf = (vm: LocalWorkload, reason: RegExp) =>
	vm
		.log()
		.split('\n')
		.filter(line => /^\S+ (warn|error) /.test(line) && reason.test(line)).length;

async function refusesAll(t: ExecutionContext, delivery: Delivery): Promise<Mesh> {
	const {mesh, vm} = await startWith(t, delivery);
	const {sandbox} = mesh;
	const good = await makePair(sandbox, vmId);
	const foreign = await makePair(sandbox, otherId);
	await refuses(t, delivery, mesh, foreign, /it names \S+other-sa, this workload is \S+vm-sa/);
	await refuses(t, delivery, mesh, await makePair(sandbox, vmId, 1), /the certificate expired at /);
	await refuses(t, delivery, mesh, {...good, key: foreign.key}, /the certificate is for another key/);
	await delivery.put(mesh.directory, good);
	const {identity} = partsOf(await vm.until('good again', seen => partsOf(seen).identity.serial === serialOf(good)));
	t.deepEqual({state: identity.state, lastError: identity.lastError}, {state: 'serving', lastError: undefined});
	return mesh;
}

test.serial('sources › mounted files are replaced while requests flow, and none fails', t =>
	replacesUnderLoad(t, files),
);

test.serial('sources › certificates over SDS are replaced while requests flow, and none fails', t =>
	replacesUnderLoad(t, sds(t)),
);

test.serial(
	'sources › of mounted files, a foreign name, one run out and another key are refused, each told once',
	async t => {
		t.timeout(120_000);
		await refusesAll(t, files);
	},
);

test.serial('sources › over SDS, a foreign name, one run out and another key are refused, each told once', async t => {
	t.timeout(120_000);
	const delivery = sds(t);
	const mesh = await refusesAll(t, delivery);
	// The server goes, socket and all: what it gave is served on.
	const vm = mesh.workload('vm');
	const {serial} = partsOf(await vm.status()).identity;
	delivery.server().stop();
	await rm(join(mesh.directory, 'sds.sock'), {force: true});
	const report = await vm.until('the socket gone', seen => /sds\.sock/.test(errorOf(seen)));
	t.is(partsOf(report).identity.serial, serial);
	t.true(report.ready);
	// The first time and each doubling of it; how many tries have been made by now is a matter of time.
	const told = warningsOf(vm, /SDS stream lost/);
	t.true(told === 1 || told === 2, `told ${told} times`);
});
