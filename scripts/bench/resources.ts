import {startUntilReady} from './agent.ts';
import {type Memory, readCpuMs, readMemory, sleep} from './figures.ts';
import {largest} from './pushes.ts';
import {type Bench, type Contender, contenders, withAgent, withControlPlane} from './setup.ts';

const settledMs = 5000;
/** Until what a push leaves behind is collected and given back, by either agent. */
const collectedMs = 25_000;

/** Idle after joining a mesh without services, and after the largest push; and the CPU that being idle takes. */
export async function measureMemory(bench: Bench): Promise<void> {
	const services = largest(bench);
	if (!bench.wants('memory') && !bench.wants('idle-cpu')) return;
	const results: Partial<Record<Contender, {idle: Memory[]; full: Memory[]; cpu: number[]}>> = {};
	await withControlPlane(bench, async plane => {
		for (let round = 0; round < (bench.isQuick ? 1 : 3); round++) {
			for (const who of contenders(bench)) {
				await plane.setServices(0);
				await withAgent(bench, plane, who, async agent => {
					await startUntilReady(agent);
					await sleep(settledMs);
					const idle = readMemory(agent.pid);
					const cpuBefore = readCpuMs(agent.pid);
					await sleep(settledMs);
					const cpu = (readCpuMs(agent.pid) - cpuBefore) / (settledMs / 1000);
					await plane.push({services});
					await sleep(collectedMs);
					const full = readMemory(agent.pid);
					results[who] ??= {idle: [], full: [], cpu: []};
					const result = results[who];
					result.idle.push(idle);
					result.full.push(full);
					result.cpu.push(cpu);
					bench.say(
						`memory round ${round + 1}, ${agent.label}: RSS ${idle.rss.toFixed(0)} MiB idle, ${full.rss.toFixed(0)} MiB after ${services} services`,
					);
				});
			}
		}
	});
	const {onramp, peer} = {onramp: results.onramp!, peer: results.peer ?? {idle: [], full: [], cpu: []}};
	for (const [key, title] of [
		['rss', 'RSS'],
		['private', 'private memory'],
		['anonymous', 'anonymous memory'],
	] as const) {
		const of = (samples: readonly Memory[]) => samples.map(sample => sample[key]);
		const growth = ({idle, full}: {idle: Memory[]; full: Memory[]}) =>
			full.map((sample, index) => ((sample[key] - idle[index]![key]) / services) * 1000);
		bench.report({
			id: `memory-idle-${key}`,
			title: `${title}, idle after joining`,
			unit: 'MiB',
			onramp: of(onramp.idle),
			peer: of(peer.idle),
		});
		bench.report({
			id: `memory-full-${key}`,
			title: `${title}, after ${services} services`,
			unit: 'MiB',
			onramp: of(onramp.full),
			peer: of(peer.full),
		});
		bench.report({
			id: `memory-growth-${key}`,
			title: `${title}, growth per 1000 services`,
			unit: 'MiB',
			onramp: growth(onramp),
			peer: growth(peer),
		});
	}
	bench.report({
		id: 'idle-cpu',
		title: 'agent CPU when nothing goes on',
		unit: 'ms/s',
		onramp: onramp.cpu,
		peer: peer.cpu,
	});
}

/** So short that both renew about once a second by themselves. */
const shortLifeMs = 2000;

/** What one renewal costs: by command where there is one, and by short life, which every agent has to follow. */
export async function measureRenewals(bench: Bench): Promise<void> {
	if (!bench.wants('renewal')) return;
	await withControlPlane(bench, async plane => {
		await withAgent(bench, plane, 'onramp', async agent => {
			await startUntilReady(agent);
			await sleep(settledMs / 2);
			const count = bench.isQuick ? 50 : 200;
			const cpuBefore = readCpuMs(agent.pid);
			for (let i = 0; i < count; i++) await agent.rotate!();
			const each = (readCpuMs(agent.pid) - cpuBefore) / count;
			bench.report({
				id: 'renewal-command',
				title: 'agent CPU per renewal, by command',
				unit: 'ms',
				onramp: [each],
				peer: [],
				note: renderRate(each),
			});
		});
		const costs: Partial<Record<Contender, number[]>> = {};
		for (const who of contenders(bench, 'peer-ecdsa')) {
			await plane.setCertificateLifetime(shortLifeMs);
			await withAgent(bench, plane, who, async agent => {
				await startUntilReady(agent);
				await sleep(settledMs / 2);
				const issuedBefore = await plane.issued();
				const cpuBefore = readCpuMs(agent.pid);
				await sleep(bench.isQuick ? 10_000 : 30_000);
				const renewals = (await plane.issued()) - issuedBefore;
				const cpuMs = readCpuMs(agent.pid) - cpuBefore;
				bench.say(`renewals, ${agent.label}: ${renewals} in ${cpuMs.toFixed(0)} ms of CPU`);
				costs[who] = renewals > 0 ? [cpuMs / renewals] : [];
			});
		}
		const {onramp = [], peer = [], 'peer-ecdsa': ecdsa = []} = costs;
		const title = `agent CPU per renewal, certificates of ${shortLifeMs / 1000} s`;
		bench.report({id: 'renewal', title, unit: 'ms', onramp, peer, note: renderRate(onramp[0])});
		if (bench.peer)
			bench.report({id: 'renewal-ecdsa', title: `${title}, ECDSA P-256 on both`, unit: 'ms', onramp, peer: ecdsa});
	});
}

const renderRate = (ms: number | undefined): string | undefined =>
	ms ? `onramp: ${(1000 / ms).toFixed(0)} a second of CPU` : undefined;
