import {type Agent, readEnvoyState, startUntilReady} from './agent.ts';
import type {PushRequest} from './control-plane.ts';
import type {ControlPlane} from './control-plane-client.ts';
import {readCpuMs, sleep, untilIdle} from './figures.ts';
import {StallWatch} from './http.ts';
import {type Bench, type Contender, contenders, withAgent, withControlPlane} from './setup.ts';

/** After the control plane has seen the last acknowledgement: garbage is collected, Envoy warms clusters. Counted as CPU. */
const settleMs = 1000;

/** Repeated within one life of an agent. */
const kinds = [
	{kind: 'initial', title: 'initial push', request: (services: number): PushRequest => ({services})},
	{
		kind: 'change',
		title: '1 % changed, only that sent',
		request: (services: number): PushRequest => ({touched: services / 100}),
	},
	{
		kind: 'full',
		title: '1 % changed, all sent',
		request: (services: number): PushRequest => ({touched: services / 100, isFull: true}),
	},
	{kind: 'same', title: 'nothing changed, all sent', request: (): PushRequest => ({isFull: true})},
] as const;

type Kind = (typeof kinds)[number]['kind'];

interface Sample {
	readonly ms: number;
	readonly cpuMs: number;
	readonly bytes: number;
}

export const sizes = ({isQuick}: Bench): readonly number[] => (isQuick ? [100, 1000] : [100, 1000, 5000]);

/** The largest, which the rows about stalls and memory use too. */
export const largest = (bench: Bench): number => sizes(bench).at(-1)!;

export async function measurePushes(bench: Bench): Promise<void> {
	const wanted = sizes(bench).filter(size => bench.wants(`push-${size}`));
	if (wanted.length === 0) return;
	await withControlPlane(bench, async plane => {
		for (const services of wanted) await measureSize(bench, plane, services);
	});
	// What it costs to take Istio-only filters out; the peer cannot: stock Envoy refuses what it passes on.
	const services = largest(bench);
	if (!bench.wants(`push-${services}-stripped`)) return;
	await withControlPlane(
		bench,
		async plane => {
			await warmUp(bench, plane, services);
			const samples: Sample[] = [];
			for (let round = 0; round < rounds(bench); round++) {
				samples.push(...(await oneLife(bench, plane, 'onramp', services, ['initial']))['initial']!);
			}
			reportPush(
				bench,
				`push-${services}-stripped`,
				`${services} services, initial push, Istio-only filters taken out`,
				samples,
				[],
			);
		},
		{hasIstioExtensions: true},
	);
}

const rounds = ({isQuick}: Bench): number => (isQuick ? 1 : 3);

async function measureSize(bench: Bench, plane: ControlPlane, services: number): Promise<void> {
	// The later ones build on the first.
	const wanted = kinds
		.map(({kind}) => kind)
		.filter(kind => kind === 'initial' || bench.wants(`push-${services}-${kind}`));
	await warmUp(bench, plane, services);
	const all = new Map<Contender, Record<string, Sample[]>>();
	for (let round = 0; round < rounds(bench); round++) {
		for (const who of contenders(bench)) {
			const samples = await oneLife(bench, plane, who, services, wanted);
			const sums = all.get(who) ?? {};
			for (const [kind, values] of Object.entries(samples)) sums[kind] = [...(sums[kind] ?? []), ...values];
			all.set(who, sums);
		}
	}
	for (const {kind, title} of kinds) {
		if (!wanted.includes(kind)) continue;
		reportPush(
			bench,
			`push-${services}-${kind}`,
			`${services} services, ${title}`,
			all.get('onramp')![kind]!,
			all.get('peer')?.[kind] ?? [],
		);
	}
}

/** The first time, the control plane encodes every resource; later it sends bytes that it keeps. Nobody should pay for that. */
async function warmUp(bench: Bench, plane: ControlPlane, services: number): Promise<void> {
	await withAgent(bench, plane, 'onramp', async agent => {
		await plane.setServices(0);
		await startUntilReady(agent);
		await plane.untilQuiet();
		await plane.push({services});
	});
}

/** A fresh agent, joined to a mesh without services, then all pushes. */
async function oneLife(
	bench: Bench,
	plane: ControlPlane,
	who: Contender,
	services: number,
	wanted: readonly Kind[],
): Promise<Record<string, Sample[]>> {
	await plane.setServices(0);
	return withAgent(bench, plane, who, async agent => {
		await startUntilReady(agent);
		const samples: Record<string, Sample[]> = {};
		for (const {kind, request} of kinds) {
			if (!wanted.includes(kind)) continue;
			const count = kind === 'initial' || bench.isQuick ? 1 : 3;
			const taken: Sample[] = [];
			for (let i = 0; i < count; i++) taken.push(await measurePush(agent, plane, request(services)));
			samples[kind] = taken;
			const {ms, cpuMs} = taken[0]!;
			bench.say(`push ${services} ${kind}, ${agent.label}: ${ms.toFixed(0)} ms, ${cpuMs.toFixed(0)} ms of CPU`);
		}
		const {clusters, warming} = await readEnvoyState(agent);
		if (clusters < services || warming > 0)
			throw new Error(`Envoy has ${clusters} clusters and ${warming} warming, expected ${services}`);
		return samples;
	});
}

/**
 * From the control plane's first send until it has the last acknowledgement and Envoy has taken its last update. The
 * latter is Envoy's own word: an agent may acknowledge endpoints that Envoy has not asked for yet.
 */
async function measurePush(agent: Agent, plane: ControlPlane, request: PushRequest): Promise<Sample> {
	await plane.untilQuiet();
	await untilIdle(agent.pid);
	const cpuBefore = readCpuMs(agent.pid);
	const {firstSentAt, lastAckAt, bytes, refusals} = await plane.push(request);
	await sleep(settleMs);
	const cpuMs = readCpuMs(agent.pid) - cpuBefore;
	if (refusals.length > 0) throw new Error(`${refusals.length} updates refused, the first: ${refusals[0]}`);
	let envoy = await readEnvoyState(agent);
	// Still at it: ask until nothing has changed for a while.
	while (performance.timeOrigin + performance.now() - envoy.lastUpdateAt < settleMs / 2) {
		await sleep(settleMs);
		envoy = await readEnvoyState(agent);
	}
	return {ms: Math.max(lastAckAt, envoy.lastUpdateAt) - firstSentAt, cpuMs, bytes};
}

function reportPush(bench: Bench, id: string, title: string, onramp: readonly Sample[], peer: readonly Sample[]): void {
	const note = `${((onramp[0]?.bytes ?? 0) / 2 ** 20).toFixed(1)} MiB`;
	const pick = (name: 'ms' | 'cpuMs') => ({
		onramp: onramp.map(sample => sample[name]),
		peer: peer.map(sample => sample[name]),
	});
	bench.report({id: `${id}-time`, title: `${title}: time`, unit: 'ms', ...pick('ms'), note});
	bench.report({id: `${id}-cpu`, title: `${title}: agent CPU`, unit: 'ms', ...pick('cpuMs')});
}

const pollMs = 5;

/** How long the agent leaves a health check waiting while the largest push passes. */
export async function measureStall(bench: Bench): Promise<void> {
	if (!bench.wants('stall')) return;
	const services = largest(bench);
	const waits: Record<string, {idle: number[]; push: number[]}> = {};
	await withControlPlane(bench, async plane => {
		await warmUp(bench, plane, services);
		for (let round = 0; round < rounds(bench); round++) {
			for (const who of contenders(bench)) {
				await plane.setServices(0);
				await withAgent(bench, plane, who, async agent => {
					await startUntilReady(agent);
					await plane.untilQuiet();
					await untilIdle(agent.pid);
					const idle = await watch(agent, () => sleep(2000));
					const push = await watch(agent, () => plane.push({services}));
					waits[who] ??= {idle: [], push: []};
					waits[who].idle.push(idle);
					waits[who].push.push(push);
					bench.say(`stall round ${round + 1}, ${agent.label}: ${push.toFixed(1)} ms, idle ${idle.toFixed(1)} ms`);
				});
			}
		}
	});
	const pick = (name: 'idle' | 'push') => ({onramp: waits['onramp']![name], peer: waits['peer']?.[name] ?? []});
	bench.report({
		id: 'stall',
		title: `longest wait at /livez, ${services} services pushed`,
		unit: 'ms',
		...pick('push'),
	});
	bench.report({
		id: 'stall-idle',
		title: 'longest wait at /livez, nothing going on',
		unit: 'ms',
		...pick('idle'),
		note: 'noise of the machine',
	});
}

async function watch(agent: Agent, act: () => Promise<unknown>): Promise<number> {
	const stalls = new StallWatch(agent.status, '/livez', pollMs);
	await act();
	await stalls.stop();
	return stalls.longestMs;
}
