import {lookup} from 'node:dns/promises';
import {connect, createServer, type Socket} from 'node:net';
import {systemCode} from '../errors.ts';
import {ProbeFailure} from './failure.ts';

/**
 * Connections from these reach the application itself: capture lets them pass, whoever's they are. From any other
 * source a connection of Envoy's user to an address of this machine is led to Envoy, which takes it even when nobody
 * listens behind.
 */
const passThrough = {4: '127.0.0.6', 6: '::6'} as const;

/**
 * Connects to the application on this machine, and never to Envoy.
 * @param host - a name or an address; of a name each address is tried, IPv4 first
 * @throws ProbeFailure, system errors
 */
export async function dial(host: string, port: number, signal: AbortSignal): Promise<Socket> {
	const found = await lookup(host, {all: true, order: 'ipv4first'});
	let failure: unknown = new ProbeFailure(`${host} has no address`);
	for (const {address, family} of found) {
		signal.throwIfAborted();
		try {
			return await (family === 6 ? dialIpv6(address, port, signal) : open(address, port, passThrough[4], signal));
		} catch (error) {
			failure = isForeign(error) ? new ProbeFailure(`${address} is not an address of this machine`) : error;
		}
	}
	throw failure;
}

/** The kernel sends nothing from a loopback address to elsewhere. */
const isForeign = (error: unknown): boolean => ['EINVAL', 'ENETUNREACH'].includes(systemCode(error) ?? '');

/**
 * `::6` is put on lo by whoever captures IPv6. Without it there is nothing to pass by; but it is lost when somebody
 * flushes lo, so that is looked at first.
 */
async function dialIpv6(address: string, port: number, signal: AbortSignal): Promise<Socket> {
	try {
		return await open(address, port, passThrough[6], signal);
	} catch (error) {
		if (systemCode(error) !== 'EADDRNOTAVAIL') throw error;
	}
	if (address !== '::1' && (await isCaptured(address, signal)))
		throw new ProbeFailure('cannot be asked past Envoy: ::6 is missing on lo (onramp capture apply puts it back)');
	return open(address, port, undefined, signal);
}

/** Whether somebody takes connections to a port of this address at which nobody listens. */
async function isCaptured(address: string, signal: AbortSignal): Promise<boolean> {
	const server = createServer().listen(0, '::1');
	try {
		await new Promise((resolve, reject) => server.once('listening', resolve).once('error', reject));
		const {port} = server.address() as {port: number};
		const socket = await open(address, port, undefined, signal);
		socket.destroy();
		return true;
	} catch (error) {
		if (systemCode(error) === 'ECONNREFUSED') return false;
		throw error;
	} finally {
		server.close();
	}
}

function open(host: string, port: number, localAddress: string | undefined, signal: AbortSignal): Promise<Socket> {
	return new Promise((resolve, reject) => {
		const socket = connect({host, port, ...(localAddress && {localAddress})});
		const give = (error: unknown): void => {
			signal.removeEventListener('abort', onAbort);
			socket.destroy();
			reject(error);
		};
		const onAbort = () => give(signal.reason);
		signal.addEventListener('abort', onAbort, {once: true});
		socket.once('error', give);
		socket.once('connect', () => {
			signal.removeEventListener('abort', onAbort);
			socket.off('error', give);
			// Whoever uses it listens too; an error in between must not end the agent.
			socket.on('error', () => {});
			resolve(socket);
		});
	});
}
