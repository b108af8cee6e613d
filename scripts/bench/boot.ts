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
import type {Bench} from './setup.ts';

/**
 * A Debian that boots for the first time and knows nothing but its user-data, as `onramp cloud-config` prints it: from the
 * moment in which cloud-init starts the service to the first request that another machine has answered over mutual TLS.
 */
export async function measureBoot(bench: Bench): Promise<void> {
	if (!bench.wants('boot')) return;
	const missing = await missingForMachines();
	if (missing !== undefined) return bench.say(`row boot is left out: ${missing}`);
	const packages = await buildPackages();
	const onramp: number[] = [];
	for (let round = 0; round < (bench.isQuick ? 1 : 3); round++) onramp.push(await bootOnce(packages));
	bench.report({
		id: 'boot',
		title: 'first boot: start of the service → first request over mutual TLS',
		...{unit: 'ms', onramp, peer: []},
		note: 'machines in containers of this one; the packages lie on the disk',
	});
}

async function bootOnce(packages: Packages): Promise<number> {
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
		return answeredMs - Number(await a.machine.show('onramp.service', 'ActiveEnterTimestampMonotonic')) / 1000;
	} finally {
		for (const end of ends.reverse()) await end();
	}
}
