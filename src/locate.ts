import {
	askAt,
	type Cloud,
	detectCloud,
	fetchFacts,
	loadKept,
	readDmi,
	saveKept,
	startCloud,
	trustKept,
} from './cloud/index.ts';
import {type Config, lookAtNetwork, rankAddresses, selectAddresses} from './config/index.ts';
import type {MeshDeps} from './mesh.ts';
import {isOtherMachine, lookAtMachine, type MachineMarks} from './registration/index.ts';

/** Asked beside all else. undefined: there is nobody to ask. */
export async function startCloudOf(
	{config, status, parts, logOf, clock, random}: MeshDeps,
	onChange: () => void,
): Promise<Cloud | undefined> {
	const {mode, waitMs, endpoint} = config.cloud;
	const cloud = mode === 'auto' ? detectCloud(readDmi) : mode;
	if (cloud === 'off' || cloud === undefined) return undefined;
	const {stateDir} = config;
	const marks = lookAtMachine();
	const isOther = (before: unknown) =>
		!Array.isArray((before as Partial<MachineMarks> | undefined)?.macs) ||
		isOtherMachine(before as MachineMarks, marks);
	const started = await parts.start('cloud', () =>
		startCloud({
			cloud,
			waitMs,
			fetch: signal => fetchFacts(cloud, askAt(endpoint, signal)),
			kept: trustKept(loadKept(stateDir), cloud, isOther),
			save: facts => saveKept(stateDir, {facts, marks}),
			onChange,
			clock,
			random,
			log: logOf('cloud'),
		}),
	);
	status.add('cloud', started.status);
	return started;
}

/** Waits for what the cloud says, where that is wanted and nothing is kept. @returns our addresses as they are known then */
export async function untilLocated(
	config: Config,
	cloud: Cloud | undefined,
	signal: AbortSignal,
): Promise<readonly string[]> {
	const {addresses, locality} = config.workload;
	const {isFixed, rules} = config.address;
	const isNamed = !isFixed && rules.some(({kind}) => kind === 'metadata');
	if (!cloud || (locality !== '' && !isNamed)) return addresses;
	await cloud.untilKnown(signal);
	return isNamed ? lookForAddresses(config, cloud) : addresses;
}

export function lookForAddresses({address}: Config, cloud: Cloud | undefined): readonly string[] {
	const network = {...lookAtNetwork(), cloudAddress: () => cloud?.current()?.address};
	return selectAddresses(rankAddresses(network, address), undefined);
}
