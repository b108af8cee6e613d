import {chmod, lstat, mkdir, rename, rm} from 'node:fs/promises';
import {connect} from 'node:net';
import {dirname} from 'node:path';
import {Server, ServerCredentials, type ServiceDefinition, type UntypedServiceImplementation} from '@grpc/grpc-js';
import {AgentError, reasonOf, systemCode} from '../errors.ts';
import {never, type Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';

/** A gRPC service as grpc-js wants it, with Buffers for messages. */
export interface XdsService {
	readonly definition: ServiceDefinition;
	readonly implementation: UntypedServiceImplementation;
}

export interface XdsSocketDeps {
	readonly path: string;
	readonly services: readonly XdsService[];
	readonly log: Logger;
}

/** `sun_path` holds 108 bytes with the closing zero (unix(7)). */
const longestPathBytes = 107;
/** Bound under this name first, so that the socket has its mode before anybody can find it. */
const newSuffix = '.new';
/** Envoy's largest request names every resource it holds; 64 MiB is past any mesh and no danger to memory. */
const maxRequestBytes = 64 * 1024 * 1024;

/**
 * Serves gRPC to Envoy on a Unix socket, mode 0600. A socket left behind by a dead agent is replaced; one on which
 * somebody answers is not.
 * @throws AgentError `relay.socket_unusable`
 */
export async function startXdsSocket({path, services, log}: XdsSocketDeps): Promise<Running> {
	const bindPath = path + newSuffix;
	if (Buffer.byteLength(bindPath) > longestPathBytes) {
		throw unusable(path, `the path is longer than ${longestPathBytes - newSuffix.length} bytes`, {
			hint: 'set a shorter socket path (relay.socket)',
		});
	}
	await mkdir(dirname(path), {recursive: true, mode: 0o700}).catch((cause: unknown) => {
		throw unusable(path, reasonOf(cause), {cause, hint: `create ${dirname(path)}, owned by the agent's user`});
	});
	await refuseIfTaken(path);
	const server = new Server({
		'grpc.max_receive_message_length': maxRequestBytes,
		'grpc.max_send_message_length': -1,
	});
	for (const {definition, implementation} of services) server.addService(definition, implementation);
	const inode = await bind(server, bindPath, path);
	log.debug({path}, 'xds socket open');
	let stopped: Promise<void> | undefined;
	const stop = async () => {
		// Streams never end by themselves, so there is nothing to wait for. Envoy keeps its configuration and comes back.
		server.forceShutdown();
		const found = await lstat(path).catch(() => undefined);
		// Another agent may have put its own socket here since; that one is not ours to take away.
		if (found?.ino === inode) await rm(path, {force: true});
	};
	return {
		finished: never,
		stop: () => {
			stopped ??= stop();
			return stopped;
		},
	};
}

async function bind(server: Server, bindPath: string, path: string): Promise<number> {
	try {
		await rm(bindPath, {force: true});
		await new Promise<void>((resolve, reject) => {
			server.bindAsync(`unix:${bindPath}`, ServerCredentials.createInsecure(), error =>
				error ? reject(error) : resolve(),
			);
		});
		await chmod(bindPath, 0o600);
		await rename(bindPath, path);
		return (await lstat(path)).ino;
	} catch (cause) {
		server.forceShutdown();
		throw unusable(path, reasonOf(cause), {
			cause,
			hint: `check that ${dirname(path)} exists, belongs to the agent's user and its disk has room`,
		});
	}
}

async function refuseIfTaken(path: string): Promise<void> {
	const found = await lstat(path).catch((cause: unknown) => {
		if (systemCode(cause) === 'ENOENT') return undefined;
		throw unusable(path, reasonOf(cause), {cause});
	});
	if (found === undefined) return;
	if (!found.isSocket()) throw unusable(path, 'something that is not a socket is there', {hint: `move ${path} away`});
	const answer = await tryConnect(path);
	if (answer === 'answered') {
		throw unusable(path, 'another process answers on it', {
			hint: `is another agent running? see who: ss -xlp | grep ${path}`,
		});
	}
	if (answer === 'EACCES' || answer === 'EPERM') {
		throw unusable(path, 'it belongs to another user', {hint: `run the agent as the owner of ${path}, or remove it`});
	}
}

/** `answered`, or the code of the error: ECONNREFUSED when nobody listens any more. */
function tryConnect(path: string): Promise<string> {
	return new Promise(resolve => {
		const socket = connect(path);
		socket.setTimeout(1000, () => {
			socket.destroy();
			// A full backlog: somebody holds it, though stuck.
			resolve('answered');
		});
		socket.once('connect', () => {
			socket.destroy();
			resolve('answered');
		});
		socket.once('error', error => resolve(systemCode(error) ?? 'unknown'));
	});
}

function unusable(path: string, why: string, options: {cause?: unknown; hint?: string}): AgentError {
	return new AgentError('relay.socket_unusable', `open the xds socket ${path}: ${why}`, options);
}
