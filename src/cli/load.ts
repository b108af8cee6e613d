import {hostname, networkInterfaces} from 'node:os';
import {diskReader, type LoadedConfig, loadConfig} from '../config/index.ts';
import type {Flags} from './index.ts';

/**
 * The configuration as this machine and this command line give it.
 * @param isStrict - refuses a bundle that seems cut short, rather than warn of it
 * @throws AgentError `config.invalid` with every problem
 */
export async function loadFrom(flags: Flags, {isStrict = false} = {}): Promise<LoadedConfig> {
	return loadConfig({
		isStrict,
		argv: flags,
		env: process.env,
		host: {hostname: hostname(), interfaces: networkInterfaces()},
		files: diskReader,
	});
}
