import {createSocket} from 'node:dgram';
import {connect} from 'node:net';
import type {CaptureConfig} from '../config/index.ts';
import type {Clock} from '../lifecycle/index.ts';
import type {Plan} from './rules.ts';

/** Something that must answer before rules lead there. */
export interface Listener {
	readonly name: string;
	readonly isAnswering: boolean;
	/** Needed: without it rules would cut the machine off. The others are only said. */
	readonly isNeeded: boolean;
}

const answerWithinMs = 1000;

/** Whether Envoy and the agent's DNS answer where the plan leads packets. */
export async function checkListeners(config: CaptureConfig, plan: Plan): Promise<readonly Listener[]> {
	const ports = new Set(plan.rules.flatMap(({verdict}) => ('port' in verdict ? [verdict.port] : [])));
	const hasIpv6 = plan.rules.some(({family, verdict}) => family === 'ip6' && 'port' in verdict);
	const listeners: Promise<Listener>[] = [];
	for (const [port, what] of [
		[config.outboundPort, 'Envoy, outbound'],
		[config.inboundPort, 'Envoy, inbound'],
	] as const) {
		if (!ports.has(port)) continue;
		listeners.push(look(`${what} (127.0.0.1:${port})`, true, answersTcp('127.0.0.1', port)));
		// An istiod that knows only IPv4 addresses of this machine gives Envoy no listener for IPv6.
		if (hasIpv6) listeners.push(look(`${what} ([::1]:${port})`, false, answersTcp('::1', port)));
	}
	if (ports.has(config.dnsPort)) {
		const leadsTo = (family: string) =>
			plan.rules.some(
				({family: each, verdict}) => each === family && verdict.kind === 'redirect' && verdict.port === config.dnsPort,
			);
		for (const [family, address] of [
			['ip', '127.0.0.1'],
			['ip6', '::1'],
		] as const)
			if (leadsTo(family)) {
				const shown = family === 'ip' ? address : `[${address}]`;
				listeners.push(
					look(`DNS over UDP (${shown}:${config.dnsPort})`, true, answersDns(address, config.dnsPort, transferOfAll)),
				);
				listeners.push(look(`DNS over TCP (${shown}:${config.dnsPort})`, true, answersTcp(address, config.dnsPort)));
			}
	}
	return Promise.all(listeners);
}

async function look(name: string, isNeeded: boolean, answer: Promise<boolean>): Promise<Listener> {
	return {name, isNeeded, isAnswering: await answer};
}

/** Looks until all that is needed answers. @returns the last look */
export async function waitForListeners(
	check: () => Promise<readonly Listener[]>,
	{waitMs, clock, signal}: {readonly waitMs: number; readonly clock: Clock; readonly signal: AbortSignal},
): Promise<readonly Listener[]> {
	const deadlineMs = clock.monotonicMs() + waitMs;
	for (;;) {
		const listeners = await check();
		if (listeners.every(({isNeeded, isAnswering}) => isAnswering || !isNeeded)) return listeners;
		if (clock.monotonicMs() >= deadlineMs) return listeners;
		await clock.sleep(100, signal);
	}
}

export function answersTcp(host: string, port: number, withinMs = answerWithinMs): Promise<boolean> {
	return new Promise(resolve => {
		const socket = connect({host, port});
		const end = (isAnswering: boolean) => {
			socket.destroy();
			resolve(isAnswering);
		};
		socket.setTimeout(withinMs, () => end(false));
		socket.once('connect', () => end(true));
		socket.once('error', () => end(false));
	});
}

/** Any answer counts, a refusal of the name included: the server is there. */
export function answersDns(
	address: string,
	port: number,
	asked: Buffer | string = '',
	withinMs = answerWithinMs,
): Promise<boolean> {
	return new Promise(resolve => {
		const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
		const timer = setTimeout(() => end(false), withinMs);
		let isOver = false;
		const end = (isAnswering: boolean) => {
			if (isOver) return;
			isOver = true;
			clearTimeout(timer);
			socket.close();
			resolve(isAnswering);
		};
		const id = Math.floor(Math.random() * 65_536);
		socket.on('error', () => end(false));
		socket.on('message', message => {
			if (message.length >= 12 && message.readUInt16BE(0) === id) end(true);
		});
		socket.connect(port, address, () => {
			socket.send(typeof asked === 'string' ? dnsQuestion(id, asked) : Buffer.concat([headOf(id), asked]), error => {
				if (error) end(false);
			});
		});
	});
}

/** A question for the addresses of a name; the root's name servers when there is none. */
function dnsQuestion(id: number, name: string): Buffer {
	const labels = name.split('.').filter(label => label !== '');
	const encoded = labels.flatMap(label => [Buffer.from([Buffer.byteLength(label)]), Buffer.from(label)]);
	return Buffer.concat([headOf(id), ...encoded, Buffer.from([0, 0, labels.length === 0 ? 2 : 1, 0, 1])]);
}

const headOf = (id: number): Buffer => Buffer.from([id >> 8, id & 255, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);

/** AXFR of the root. The agent refuses it by itself, so that a server of others that is silent does not look like its own silence. */
export const transferOfAll = Buffer.from([0, 0, 252, 0, 1]);
