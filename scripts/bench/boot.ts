import type {ExecutionContext} from 'ava';
import {missingForMachines} from '../../test/booted/machine.ts';
import {
	buildPackages,
	install,
	joinMesh,
	makeBootedWorld,
	type Packages,
	seedFor,
	untilAnswered,
} from '../../test/booted/world.ts';
import {type Memory, parseMemory, sleep} from './figures.ts';
import type {Bench} from './setup.ts';

/** Until what a start leaves behind is collected, as for the other rows of memory. */
const settledMs = 5000;
const installed = {agent: 'onramp-agent.service', envoy: 'onramp-envoy@a.service'} as const;

interface Boot {
	/** From the moment in which cloud-init starts the service to the first request that another machine has answered. */
	readonly tookMs: number;
	readonly idle: Readonly<Record<keyof typeof installed, Memory>>;
}

/**
 * A Debian that boots for the first time and knows nothing but its user-data, as `onramp cloud-config` prints it: how long
 * until it is in the mesh, and what agent and Envoy take there under their units.
 */
export async function measureBoot(bench: Bench): Promise<void> {
	if (!bench.wants('boot') && !bench.wants('installed-idle')) return;
	const missing = await missingForMachines();
	if (missing !== undefined) return bench.say(`rows boot and installed-idle are left out: ${missing}`);
	const packages = await buildPackages();
	const boots: Boot[] = [];
	for (let round = 0; round < (bench.isQuick ? 1 : 3); round++) boots.push(await bootOnce(packages));
	bench.report({
		id: 'boot',
		title: 'first boot: start of the service → first request over mutual TLS',
		...{unit: 'ms', onramp: boots.map(({tookMs}) => tookMs), peer: []},
		note: 'machines in containers of this one; the packages lie on the disk',
	});
	for (const [part, title] of [
		['agent', 'the agent'],
		['envoy', 'Envoy, one worker'],
	] as const)
		for (const [key, what] of [
			['rss', 'RSS'],
			['private', 'private memory'],
		] as const)
			bench.report({
				id: `installed-idle-${part}-${key}`,
				title: `installed, idle: ${what} of ${title}`,
				...{unit: 'MiB', onramp: boots.map(({idle}) => idle[part][key]), peer: []},
			});
}

async function bootOnce(packages: Packages): Promise<Boot> {
	const ends: (() => unknown)[] = [];
	const scope = {teardown: (end: () => unknown) => ends.push(end), log: () => {}, passed: true};
	try {
		const world = await makeBootedWorld(scope as unknown as ExecutionContext);
		const b = await world.boot('b');
		await install(b, packages);
		await joinMesh(b);
		const a = await world.boot('a', await seedFor(await world.bundle('a'), packages));
		await untilAnswered(a, 'b');
		// One clock for both: machines of this kind have the kernel's.
		const answeredMs = Number(process.hrtime.bigint()) / 1e6;
		const startedMs = Number(await a.machine.show('onramp.service', 'ActiveEnterTimestampMonotonic')) / 1000;
		await sleep(settledMs);
		const memoryOf = async (unit: string) =>
			parseMemory(await a.machine.must(`cat /proc/${await a.machine.show(unit, 'MainPID')}/smaps_rollup`));
		const idle = {agent: await memoryOf(installed.agent), envoy: await memoryOf(installed.envoy)};
		return {tookMs: answeredMs - startedMs, idle};
	} finally {
		for (const end of ends.reverse()) await end();
	}
}
