import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {closeSync, constants, openSync} from 'node:fs';
import {AgentError, reasonOf} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import {identify, type ProcessIdentity, startTimeOf} from './linux-process.ts';

export interface EnvoyExit {
	/** Undefined when the process was not our child. */
	readonly code: number | undefined;
	readonly signal: string | undefined;
}

/** One Envoy process, our child or taken over from an earlier agent. */
export interface EnvoyProcess {
	readonly identity: ProcessIdentity;
	readonly isAdopted: boolean;
	readonly exited: Promise<EnvoyExit>;
	/** To its whole process group. Does nothing once it is gone. */
	signalGroup(signal: NodeJS.Signals): void;
	/** To Envoy alone. */
	signal(signal: NodeJS.Signals): void;
	/** Lets the agent end although this process goes on. */
	release(): void;
}

/** How often a process that is not our child is looked at: only a parent is told of an end. */
const adoptedPollMs = 500;

export interface SpawnInput {
	readonly binaryPath: string;
	readonly args: readonly string[];
	readonly errorLogPath: string;
}

/**
 * Starts Envoy in a session of its own, so that nothing which ends the agent ends Envoy too. Its outputs go to a
 * file: it would lose a pipe with the agent, and block on one that is not read.
 */
export async function spawnEnvoy({binaryPath, args, errorLogPath}: SpawnInput): Promise<EnvoyProcess> {
	const output = openOutput(errorLogPath);
	try {
		const child = spawn(binaryPath, args, {
			detached: true,
			cwd: '/',
			stdio: ['ignore', output, output],
			// Nothing of the agent's environment: it may hold what is not Envoy's business.
			env: {PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'},
		});
		const exited = new Promise<EnvoyExit>(resolve => {
			child.once('exit', (code, signal) => resolve({code: code ?? undefined, signal: signal ?? undefined}));
		});
		await once(child, 'spawn');
		const pid = child.pid!;
		let isGone = false;
		void exited.then(() => {
			isGone = true;
		});
		return {
			// Too short-lived to be looked at: `exited` tells the rest.
			identity: identify(pid) ?? {pid, startTime: 0, exe: binaryPath, argv: [binaryPath, ...args]},
			isAdopted: false,
			exited,
			signalGroup: signal => send(-pid, signal, !isGone),
			signal: signal => send(pid, signal, !isGone),
			release: () => child.unref(),
		};
	} finally {
		closeSync(output);
	}
}

function openOutput(path: string): number {
	const {O_WRONLY, O_CREAT, O_TRUNC, O_APPEND} = constants;
	try {
		return openSync(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0o600);
	} catch (cause) {
		throw new AgentError('proxy.state_unusable', `start envoy: open its log ${path}: ${reasonOf(cause)}`, {
			cause,
			hint: 'let the agent write there, or set proxy.log to a path on another disk',
		});
	}
}

/** Takes over a process that an earlier agent started. The poll ends with the process, or with the signal. */
export function adoptEnvoy(identity: ProcessIdentity, clock: Clock, signal: AbortSignal): EnvoyProcess {
	const {pid, startTime} = identity;
	const isThere = () => startTimeOf(pid) === startTime;
	const watch = async (): Promise<EnvoyExit> => {
		while (isThere()) await clock.sleep(adoptedPollMs, signal);
		return {code: undefined, signal: undefined};
	};
	return {
		identity,
		isAdopted: true,
		// Given up only when the agent goes, and then nobody waits for it.
		exited: watch().catch(() => new Promise<never>(() => {})),
		signalGroup: name => send(-pid, name, isThere()),
		signal: name => send(pid, name, isThere()),
		release: () => {},
	};
}

function send(target: number, signal: NodeJS.Signals, isThere: boolean): void {
	if (!isThere) return;
	try {
		process.kill(target, signal);
	} catch {
		// Gone in between; `exited` tells.
	}
}
