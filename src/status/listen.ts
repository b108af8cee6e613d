import {lstat, mkdir, rename, unlink} from 'node:fs/promises';
import {connect, type ListenOptions, type Server} from 'node:net';
import {dirname} from 'node:path';
import {AgentError, systemCode} from '../errors.ts';
import {findPortOwner} from './port-owner.ts';

/** @throws AgentError `status.port_in_use`, `status.listen_failed` */
export async function listenOnPort(server: Server, address: string, port: number): Promise<void> {
	try {
		await listen(server, {host: address, port});
	} catch (cause) {
		const place = `${address.includes(':') ? `[${address}]` : address}:${port}`;
		if (systemCode(cause) !== 'EADDRINUSE') {
			throw new AgentError('status.listen_failed', `listen for status on ${place}: ${systemCode(cause)}`, {
				cause,
				hint: 'set status.address and status.port to an address of this machine and a port this user may open',
			});
		}
		const owner = await findPortOwner(port);
		throw new AgentError(
			'status.port_in_use',
			`listen for status on ${place}: port is in use${owner ? ` by ${owner}` : ''}`,
			{
				cause,
				hint: `stop what listens there (ss -ltnp 'sport = :${port}'), or set status.port to another port`,
			},
		);
	}
}

/**
 * Listens on a Unix socket that only this user and this group may use. A socket file that nobody answers at is left
 * from a killed agent and makes way; one that answers belongs to another agent.
 * @throws AgentError `status.port_in_use`, `status.listen_failed`
 */
export async function listenOnSocket(server: Server, path: string): Promise<void> {
	try {
		await mkdir(dirname(path), {recursive: true, mode: 0o750});
		await listenOwn(server, path).catch(async (error: unknown) => {
			if (systemCode(error) !== 'EADDRINUSE') throw error;
			await clearStale(path);
			await listenOwn(server, path);
		});
	} catch (cause) {
		if (cause instanceof AgentError) throw cause;
		if (systemCode(cause) === 'EADDRINUSE') throw anotherAgent(path, cause);
		throw new AgentError('status.listen_failed', `open control socket ${path}: ${systemCode(cause)}`, {
			cause,
			hint: `make ${dirname(path)} a directory this user may write, or set status.control-socket`,
		});
	}
}

async function listenOwn(server: Server, path: string): Promise<void> {
	// The socket is made inside listen(), before it returns, and must never be wider than this, not even briefly.
	const umask = process.umask(0o117);
	let listening: Promise<void>;
	try {
		listening = listen(server, {path});
	} finally {
		process.umask(umask);
	}
	await listening;
}

/**
 * Moves the file away before it looks again: of two agents that start at once only one gets it, and if it turns out
 * to be the other's fresh socket it goes back.
 */
async function clearStale(path: string): Promise<void> {
	// Connecting to a plain file is refused like a dead socket, and the file may be anything.
	if (!(await lstat(path)).isSocket()) {
		throw new AgentError(
			'status.listen_failed',
			`open control socket ${path}: a file that is no socket is in its place`,
			{
				hint: 'move that file away, or set status.control-socket',
			},
		);
	}
	if (await answers(path)) throw anotherAgent(path);
	const aside = `${path}.${process.pid}`;
	try {
		await rename(path, aside);
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return;
		throw error;
	}
	if (await answers(aside)) {
		await rename(aside, path);
		throw anotherAgent(path);
	}
	await unlink(aside);
}

function anotherAgent(path: string, cause?: unknown): AgentError {
	return new AgentError('status.port_in_use', `open control socket ${path}: another agent answers there`, {
		cause,
		hint: 'see what it does with `onramp status`, and stop it first: systemctl stop onramp',
	});
}

function answers(path: string): Promise<boolean> {
	return new Promise((resolve, reject) => {
		const socket = connect({path});
		socket.on('connect', () => {
			socket.destroy();
			resolve(true);
		});
		socket.on('error', error => {
			const code = systemCode(error);
			if (code === 'ECONNREFUSED' || code === 'ENOENT') resolve(false);
			else reject(error);
		});
	});
}

function listen(server: Server, options: ListenOptions): Promise<void> {
	return new Promise((resolve, reject) => {
		const settle = (error?: Error) => {
			server.off('error', settle);
			server.off('listening', settle);
			if (error) reject(error);
			else resolve();
		};
		server.on('error', settle);
		server.on('listening', settle);
		server.listen(options);
	});
}
