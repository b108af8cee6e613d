import {join} from 'node:path';
import {retry} from '../demo-steps.ts';
import {agentUid, callerUid, controlPlane, type Machine, Machines, whyNoMachines} from '../machines.ts';
import {killAtEnd} from './cleanup.ts';
import {median} from './figures.ts';
import type {Bench} from './setup.ts';

/** Of the same application, reached directly. */
const directPort = 8081;
/** Of one that is not in the mesh. */
const outsidePort = 8090;

/**
 * What a captured request takes longer than a direct one, on two machines in network namespaces with a real Envoy each.
 * Both are sent while the rules are in: who runs as Envoy's user is not captured, and one port of the application is
 * excluded.
 */
export async function measureLatency(bench: Bench): Promise<void> {
	if (!bench.wants('capture-latency')) return;
	const missing = whyNoMachines();
	if (missing) return bench.say(`rows capture-latency are left out: this ${missing}`);
	const flags = ['--capture-inbound-exclude-ports', String(directPort)];
	const machines = new Machines(join(bench.directory, 'latency'), bench.envoyPath, flags);
	const forget = killAtEnd(() => machines.destroy());
	try {
		await measure(bench, machines);
	} finally {
		machines.destroy();
		forget();
	}
}

async function measure(bench: Bench, machines: Machines): Promise<void> {
	const {cluster, vm, all} = machines;
	await machines.make();
	await machines.startControlPlane();
	for (const each of all) {
		machines.startApp(each);
		await machines.join(each);
	}
	machines.startApp(cluster, directPort);
	machines.startOutside(outsidePort);
	const outside = `http://${controlPlane}:${outsidePort}/`;
	const ways = {
		mesh: {captured: `http://${cluster.host}/`, direct: `http://${cluster.address}:${directPort}/`},
		outside: {captured: outside, direct: outside},
	} as const;
	// Each is a process that has just been started, or a way that has to become known.
	for (const [uid, url] of [
		[agentUid, ways.mesh.direct],
		[agentUid, outside],
		[callerUid, ways.mesh.captured],
		[callerUid, outside],
	] as const)
		await retry(() => ask(machines, vm, uid, url, 'new', 1), 30_000);
	const titles = {
		'mesh-kept': 'added by capture: a request to the mesh, connection kept',
		'mesh-new': 'added by capture: a request to the mesh, new connection',
		'outside-kept': 'added by capture: a request out of the mesh, connection kept',
		'outside-new': 'added by capture: a request out of the mesh, new connection',
	} as const;
	const count = bench.isQuick ? 200 : 500;
	for (const [id, title] of Object.entries(titles)) {
		const [way, kind] = id.split('-') as ['mesh' | 'outside', 'kept' | 'new'];
		const [added, direct]: [number[], number[]] = [[], []];
		for (let round = 0; round < (bench.isQuick ? 3 : 10); round++) {
			const plainUs = median(await ask(machines, vm, agentUid, ways[way].direct, kind, count));
			direct.push(plainUs);
			added.push(median(await ask(machines, vm, callerUid, ways[way].captured, kind, count)) - plainUs);
		}
		bench.report({
			id: `capture-latency-${id}`,
			title,
			unit: 'µs',
			onramp: added,
			peer: [],
			note: `direct ${median(direct).toFixed(0)} µs${way === 'mesh' ? '; two Envoys and mutual TLS' : ''}; the peer's Envoy is the same`,
		});
	}
}

async function ask(
	machines: Machines,
	caller: Machine,
	uid: string,
	url: string,
	kind: string,
	count: number,
): Promise<readonly number[]> {
	const client = ['scripts/bench/latency-client.ts', url, kind, String(count)];
	const {code, stdout, stderr} = await machines.as(uid, caller, [process.execPath, ...client]);
	if (code !== 0) throw new Error(`ask ${url}: ${stderr.trim()}`);
	return JSON.parse(stdout) as number[];
}
