import {spawn} from 'node:child_process';
import {closeSync} from 'node:fs';
import {AgentError} from '../errors.ts';
import {toolDirectories} from '../lifecycle/find-program.ts';
import {processMark} from '../lifecycle/lock.ts';
import {findTool} from './find-tool.ts';
import {startedBy} from './orphans.ts';
import {spool} from './spool.ts';

export interface Outcome {
	readonly code: number;
	readonly stdout: string;
	readonly stderr: string;
}

/** Runs a program to its end; what it printed and how it ended is the caller's to judge. */
export type Run = (program: string, args: readonly string[], input?: string) => Promise<Outcome>;

/** A rule set takes milliseconds; iptables-legacy may wait this long for its lock. */
const timeoutMs = 30_000;

/** @throws AgentError `capture.tool_missing` when this machine does not have the program */
export const runProgram: Run = async (program, args, input = '') => {
	const path = findTool(program);
	if (path === undefined)
		throw new AgentError('capture.tool_missing', `run ${program}: this machine does not have it`, {
			hint: `install the package that brings it (${packageOf(program)})`,
		});
	const stdin = spool(input);
	return new Promise<Outcome>((resolve, reject) => {
		const child = spawn(path, [...args], {
			stdio: [stdin ?? 'ignore', 'pipe', 'pipe'],
			env: {PATH: toolDirectories.join(':'), LC_ALL: 'C', [startedBy]: processMark(), ...lockFile()},
			timeout: timeoutMs,
			killSignal: 'SIGKILL',
		});
		const out: Buffer[] = [];
		const err: Buffer[] = [];
		child.stdout!.on('data', (chunk: Buffer) => out.push(chunk));
		child.stderr!.on('data', (chunk: Buffer) => err.push(chunk));
		child.on('error', reject);
		child.on('close', code =>
			resolve({code: code ?? -1, stdout: Buffer.concat(out).toString(), stderr: Buffer.concat(err).toString()}),
		);
	}).finally(() => {
		if (stdin !== undefined) closeSync(stdin);
	});
};

/** iptables-legacy wants to write its lock; a sandboxed unit gives it another place. */
const lockFile = (): Record<string, string> => {
	const path = process.env['XTABLES_LOCKFILE'];
	return path ? {XTABLES_LOCKFILE: path} : {};
};

const packageOf = (program: string): string =>
	program === 'nft' ? 'nftables' : program.startsWith('ip') && program.includes('tables') ? 'iptables' : 'iproute2';

/** @throws AgentError `capture.permission` or `capture.tool_failed` with what the program said */
export async function mustRun(run: Run, program: string, args: readonly string[], input?: string): Promise<string> {
	const outcome = await run(program, args, input);
	if (outcome.code === 0) return outcome.stdout;
	throw failureOf(program, args, outcome);
}

export function failureOf(program: string, args: readonly string[], {code, stdout, stderr}: Outcome): AgentError {
	const said = (stderr.trim() || stdout.trim()).split('\n').slice(0, 3).join('; ') || `exit code ${code}`;
	const command = [program, ...args].join(' ');
	if (/operation not permitted|permission denied|you must be root/i.test(said))
		return new AgentError('capture.permission', `${command}: ${said}`, {
			hint: 'needs CAP_NET_ADMIN, and CAP_NET_RAW for iptables-legacy: run it as root, or as the capture service',
		});
	return new AgentError('capture.tool_failed', `${command}: ${said}`, {hint: 'nothing further was changed'});
}
