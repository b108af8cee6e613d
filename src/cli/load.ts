import {hostname} from 'node:os';
import {loadKept} from '../cloud/kept.ts';
import {diskReader, type FileReader, type LoadedConfig, loadConfig, lookAtNetwork} from '../config/index.ts';
import type {Flags} from './index.ts';

export interface LoadOptions {
	/** Refuses a bundle that seems cut short, rather than warn of it. */
	readonly isStrict?: boolean;
	readonly files?: FileReader;
	readonly env?: Readonly<Record<string, string | undefined>>;
}

/**
 * The configuration as this machine and this command line give it.
 * @throws AgentError `config.invalid` with every problem
 */
export async function loadFrom(
	flags: Flags,
	{isStrict = false, files = diskReader, env = process.env}: LoadOptions = {},
): Promise<LoadedConfig> {
	return loadConfig({
		isStrict,
		argv: flags,
		env,
		host: {
			hostname: hostname(),
			...lookAtNetwork(),
			keptCloudAddress: stateDir => loadKept(stateDir)?.facts.address || undefined,
		},
		files,
	});
}
