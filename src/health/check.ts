import type {ProbeCheck} from '../config/types.ts';
import {reasonOf, systemCode} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import {dial} from './dial.ts';
import {checkExec} from './exec-check.ts';
import {ProbeFailure} from './failure.ts';
import {checkGrpc} from './grpc-check.ts';
import {checkHttp} from './http-check.ts';

/** undefined: healthy; otherwise why not. */
export type Outcome = string | undefined;

export interface CheckResult {
	readonly outcome: Outcome;
	/** Nothing of it is left. */
	readonly ended: Promise<void>;
}

/** Ends up in the WorkloadEntry and on terminals. */
const longestMessage = 300;

/**
 * Asks the application once.
 * @param host - for checks that name none
 * @throws the signal's reason, and nothing else
 */
export async function runCheck(
	check: ProbeCheck,
	host: string,
	timeoutMs: number,
	clock: Clock,
	signal: AbortSignal,
): Promise<CheckResult> {
	const late = new AbortController();
	const timer = new AbortController();
	const both = AbortSignal.any([late.signal, signal]);
	clock.sleep(timeoutMs, timer.signal).then(
		() => late.abort(new ProbeFailure(`no answer within ${timeoutMs / 1000} s`)),
		() => {}, // It was in time.
	);
	// Neither a look-up of a name nor a program that hangs in the kernel can be called off; nobody waits for its end.
	const over = new Promise<never>((_, reject) => both.addEventListener('abort', () => reject(both.reason)));
	const running = ask(check, host, both);
	// Told below, unless it comes too late.
	const ended = running.catch(() => {});
	try {
		await Promise.race([running, over]);
		return {outcome: undefined, ended};
	} catch (error) {
		signal.throwIfAborted();
		return {outcome: tidy(late.signal.aborted ? reasonOf(late.signal.reason) : explain(error)), ended};
	} finally {
		timer.abort();
		over.catch(() => {});
	}
}

async function ask(check: ProbeCheck, fallback: string, signal: AbortSignal): Promise<void> {
	switch (check.kind) {
		case 'http':
			return checkHttp({...check, host: check.host ?? fallback}, signal);
		case 'tcp': {
			const socket = await dial(check.host ?? fallback, check.port, signal);
			socket.destroy();
			return;
		}
		case 'grpc':
			return checkGrpc({...check, host: fallback}, signal);
		case 'exec':
			return checkExec(check.command, signal);
	}
}

/** `http://10.0.0.5:8080/healthz`, `tcp 10.0.0.5:5432`, … */
export function describeCheck(check: ProbeCheck, fallback: string): string {
	if (check.kind === 'exec') return `exec ${check.command[0]}`;
	const host = check.kind === 'grpc' ? fallback : (check.host ?? fallback);
	const at = `${host.includes(':') ? `[${host}]` : host}:${check.port}`;
	if (check.kind === 'http') return `${check.scheme}://${at}${check.path}`;
	return check.kind === 'tcp' ? `tcp ${at}` : `grpc ${at}${check.service && ` ${check.service}`}`;
}

function explain(error: unknown): string {
	switch (systemCode(error)) {
		case 'ECONNREFUSED':
			return 'connection refused: nobody listens there';
		case 'ECONNRESET':
			return 'connection reset';
		case 'ENOENT':
			return 'there is no such program';
		case 'EACCES':
			return 'the agent may not run this program';
		case 'ENOTFOUND':
			return 'its host has no address';
		default:
			return reasonOf(error);
	}
}

/** What the application says must neither move a cursor nor fill a disk. */
function tidy(message: string): string {
	const line = message.replace(/[\x00-\x1f\x7f-\x9f\s]+/g, ' ').trim();
	return line.length > longestMessage ? `${line.slice(0, longestMessage - 1)}…` : line;
}
