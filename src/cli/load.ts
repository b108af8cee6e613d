import {hostname, networkInterfaces} from 'node:os';
import {diskReader, type LoadedConfig, loadConfig} from '../config/index.ts';
import type {Flags} from './index.ts';

/** The configuration as this machine and this command line give it. @throws AgentError `config.invalid` with every problem */
export async function loadFrom(flags: Flags): Promise<LoadedConfig> {
	return loadConfig({
		argv: flags,
		env: process.env,
		host: {hostname: hostname(), interfaces: networkInterfaces()},
		files: diskReader,
	});
}
