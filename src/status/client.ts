import {request as httpRequest} from 'node:http';
import {AgentError, reasonOf, systemCode} from '../errors.ts';
import type {StatusReport} from './report.ts';

/** The agent answers at once or hangs; a command (`rotate`) may wait for the control plane. */
const statusTimeoutMs = 5000;
const commandTimeoutMs = 60_000;

/**
 * Asks the agent that listens on this control socket how it is.
 * @throws AgentError `status.unreachable`
 */
export async function fetchStatus(controlSocketPath: string): Promise<StatusReport> {
	return (await ask(controlSocketPath, 'GET', '/status', undefined, statusTimeoutMs)) as StatusReport;
}

/**
 * Runs a command of the agent's and returns its result.
 * @throws AgentError `status.unreachable` when there is no answer, `status.command_failed` with what the agent said
 */
export async function sendCommand(
	controlSocketPath: string,
	name: string,
	input?: unknown,
	timeoutMs = commandTimeoutMs,
): Promise<unknown> {
	return ask(controlSocketPath, 'POST', `/${name}`, input, timeoutMs);
}

async function ask(
	socketPath: string,
	method: string,
	path: string,
	input: unknown,
	timeoutMs: number,
): Promise<unknown> {
	const {status, body} = await exchange(socketPath, method, path, input, timeoutMs).catch((cause: unknown) => {
		throw unreachable(socketPath, cause, timeoutMs);
	});
	if (status !== 200) throw refused(socketPath, path, status, body);
	try {
		return JSON.parse(body);
	} catch (cause) {
		throw unreachable(socketPath, cause, timeoutMs);
	}
}

function exchange(
	socketPath: string,
	method: string,
	path: string,
	input: unknown,
	timeoutMs: number,
): Promise<{status: number; body: string}> {
	return new Promise((resolve, reject) => {
		const signal = AbortSignal.timeout(timeoutMs);
		const request = httpRequest({socketPath, method, path, agent: false, signal}, async response => {
			try {
				const chunks = await response.toArray();
				resolve({status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString('utf8')});
			} catch (error) {
				reject(error);
			}
		});
		request.on('error', reject);
		request.end(input === undefined ? undefined : JSON.stringify(input));
	});
}

function unreachable(socketPath: string, cause: unknown, timeoutMs: number): AgentError {
	const fail = (why: string, hint: string) =>
		new AgentError('status.unreachable', `ask agent at ${socketPath}: ${why}`, {cause, hint});
	switch (systemCode(cause) ?? (cause as Error).name) {
		case 'ENOENT':
			return fail(
				'agent is not running (no such socket)',
				'start it with: systemctl restart onramp; where there is no service, onramp run',
			);
		case 'ECONNREFUSED':
			return fail(
				'agent is not running (nobody answers at its socket)',
				'see why it ended with: journalctl -u onramp-agent -n 50; start it with: systemctl restart onramp',
			);
		case 'EACCES':
		case 'EPERM':
			return fail(
				'permission denied',
				'run this as root, or join the group and log in again: sudo usermod -aG onramp "$USER"',
			);
		case 'ABORT_ERR':
		case 'AbortError':
		case 'TimeoutError':
			return fail(
				`no answer within ${timeoutMs / 1000} s`,
				'the agent hangs; see journalctl -u onramp-agent, and restart it: systemctl restart onramp-agent (Envoy goes on)',
			);
		default:
			return fail(reasonOf(cause), 'see journalctl -u onramp-agent -n 50');
	}
}

function refused(socketPath: string, path: string, status: number, body: string): AgentError {
	const {message, hint} = parseRefusal(body);
	if (status === 404) {
		return new AgentError('status.command_failed', `ask agent at ${socketPath}: it does not know ${path}`, {
			hint: 'agent and command are of different versions; restart the agent: systemctl restart onramp-agent',
		});
	}
	return new AgentError(
		'status.command_failed',
		message ?? `ask agent at ${socketPath} for ${path}: HTTP status ${status}`,
		{hint},
	);
}

function parseRefusal(body: string): {message?: string; hint?: string} {
	try {
		return JSON.parse(body) as {message?: string; hint?: string};
	} catch {
		// Not from a command: an HTTP error page of the server's, which says no more than its status.
		return {};
	}
}
