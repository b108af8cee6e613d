import {
	checkBundleFiles,
	checkConfig,
	diskReader,
	findBundleDirectory,
	findControlSocket,
	type LoadedConfig,
	type Problem,
} from '../../config/index.ts';
import {AgentError} from '../../errors.ts';
import {fetchStatus} from '../../status/index.ts';
import type {Flags} from '../index.ts';
import {loadFrom} from '../load.ts';
import {addresses} from './addresses.ts';
import {agent} from './agent.ts';
import {ca} from './ca.ts';
import {certificate} from './certificate.ts';
import {clock} from './clock.ts';
import {configuration} from './configuration.ts';
import {envoy} from './envoy.ts';
import {kubernetes} from './kubernetes.ts';
import {names} from './names.ts';
import {ports} from './ports.ts';
import {service} from './service.ts';
import {stateDirectory} from './state-directory.ts';
import {tcp} from './tcp.ts';
import {tls} from './tls.ts';
import {token} from './token.ts';
import type {Check, Finding, Patient} from './types.ts';

export type {Finding, Patient} from './types.ts';

/** One line of the result. */
export interface Result extends Finding {
	readonly check: string;
}

/** In the order of the data's way, so that the first failure is mostly the cause of those below it. */
const checks: readonly Check[] = [
	...[service, agent, configuration, addresses, clock, stateDirectory, certificate, token],
	...[names, tcp, tls, kubernetes],
	...[envoy, ports],
];

/** Longer than a lost packet takes to be sent again twice. */
const timeoutMs = 5000;

/** @param asksCa - makes the one check that has an effect elsewhere: a certificate is issued */
export async function examine(flags: Flags, asksCa: boolean, now: Date): Promise<readonly Result[]> {
	const patient = await gather(flags, now);
	const all = asksCa ? [...checks.slice(0, -2), ca, ...checks.slice(-2)] : checks;
	// At the same time: a control plane that is silent costs each of them its whole wait.
	const results = await Promise.all(
		all.map(async check => (await check.run(patient)).map(finding => ({check: check.name, ...finding}))),
	);
	return results.flat();
}

async function gather(flags: Flags, now: Date): Promise<Patient> {
	const look = {argv: flags, env: process.env, files: diskReader, cwd: process.cwd()};
	const {loaded, problems: ofText} = await load(flags);
	const controlSocketPath = loaded?.config.status.controlSocketPath ?? findControlSocket(look).path;
	const bundle = findBundleDirectory(look).path;
	const ofFiles = loaded
		? checkConfig(loaded, diskReader).filter(({place}) => place !== loaded.config.controlPlane.tokenPath)
		: diskReader.can(bundle, 'read')
			? checkBundleFiles(bundle, diskReader)
			: [];
	const asked = await fetchStatus(controlSocketPath).then(
		report => ({report, unreachable: undefined}),
		(error: unknown) => {
			if (error instanceof AgentError) return {report: undefined, unreachable: error};
			throw error;
		},
	);
	// Each has a check of its own, with more to say.
	const problems = [...ofText, ...ofFiles].filter(({place}) => place !== loaded?.config.proxy.binaryPath);
	return {loaded, problems, ...asked, controlSocketPath, now, timeoutMs};
}

async function load(flags: Flags): Promise<{loaded?: LoadedConfig; problems: readonly Problem[]}> {
	try {
		return {loaded: await loadFrom(flags), problems: []};
	} catch (error) {
		if (!(error instanceof AgentError) || error.code !== 'config.invalid') throw error;
		return {problems: (error.fields['problems'] ?? []) as readonly Problem[]};
	}
}
