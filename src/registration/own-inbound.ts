import {type Clock, never, type Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {typeUrl} from '../proto/types.ts';
import {FieldReader, WireError} from '../proto/wire.ts';

/** An answer of the control plane, as far as it is looked at. */
export interface SeenResponse {
	readonly typeUrl: string;
	readonly resources: {readonly names: readonly string[]; any(index: number): Buffer};
	readonly removed: readonly string[];
}

export interface OwnInboundStatus {
	/** Ports of ours that the mesh sends requests to. */
	readonly ports: readonly number[];
	/** Those of them that we have been given no cluster for, so that requests to them fail. */
	readonly missing: readonly number[];
	/** Streams opened anew because of the ports that are missing. */
	readonly attempts: number;
}

export interface OwnInbound extends Running {
	/** To be called with each answer; `isWhole`: what it does not name is gone. */
	see(response: SeenResponse, isWhole: boolean): void;
	status(): OwnInboundStatus;
	/** Resolves when, as far as the control plane has told us, nobody is sent to us any more; or with the signal. */
	untilLeft(signal: AbortSignal): Promise<void>;
}

export interface OwnInboundDeps {
	/** Of our WorkloadEntry. */
	readonly address: string;
	/** Ends the stream to the control plane and opens another. */
	readonly reconnect: () => void;
	readonly clock: Clock;
	/** In [0, 1). */
	readonly random: () => number;
	readonly log: Logger;
}

/** Longer than istiod waits for quiet before it pushes (100 ms); the services of a new entry come with that push. */
const patienceMs = 1000;
const patienceFactor = 4;
/** A `Sidecar` may leave a port out on purpose; then asking again does not help. */
const maxAttempts = 3;

/**
 * Notices that the mesh sends us requests for a port the control plane has given us nothing to serve with, and asks
 * anew. istiod takes the list of a VM's services when its stream opens, right after it has written the WorkloadEntry.
 * When the entry has not reached its index by then, and nothing else in the mesh changes, the VM is never told of its
 * own ports (Istio, serviceentry/controller.go: pushWorkloadUpdates runs before the index is updated).
 */
export function startOwnInbound({address, reconnect, clock, random, log}: OwnInboundDeps): OwnInbound {
	const stopping = new AbortController();
	const needle = Buffer.from(address);
	/** EDS name → our own ports in it. */
	const ours = new Map<string, readonly number[]>();
	const served = new Set<number>();
	const leaving = new Set<() => void>();
	let attempts = 0;
	let known = '';
	let timer: AbortController | undefined;

	const ports = () => [...new Set([...ours.values()].flat())].sort((a, b) => a - b);
	const missing = () => ports().filter(port => !served.has(port));

	const check = (): void => {
		const now = missing().join(', ');
		if (now === known) return;
		if (now === '' && attempts > 0) log.info({ports: ports()}, 'the control plane has sent what serves our ports');
		known = now;
		attempts = 0;
		timer?.abort();
		if (now !== '') wait();
	};

	const wait = (): void => {
		timer = new AbortController();
		const delayMs = patienceMs * patienceFactor ** attempts * (1 + random());
		clock.sleep(delayMs, AbortSignal.any([timer.signal, stopping.signal])).then(askAnew, () => {
			// What was missing has come, or we stop.
		});
	};

	const askAnew = (): void => {
		attempts++;
		log.warn(
			{missing: missing(), attempts},
			'the mesh sends requests to ports of ours that the control plane has sent no listener for: opening a new stream',
		);
		reconnect();
		if (attempts < maxAttempts) wait();
	};

	return {
		finished: never,
		see: ({typeUrl: url, resources, removed}, isWhole) => {
			if (url === typeUrl.cluster) {
				if (isWhole) {
					served.clear();
					const kept = new Set(resources.names);
					for (const name of ours.keys()) if (!kept.has(name)) ours.delete(name);
				}
				for (const name of resources.names) {
					const port = inboundPort(name);
					if (port !== undefined) served.add(port);
				}
				for (const name of removed) {
					const port = inboundPort(name);
					if (port !== undefined) served.delete(port);
					ours.delete(name);
				}
			} else if (url === typeUrl.endpoint) {
				for (const [i, name] of resources.names.entries()) {
					const any = resources.any(i);
					const found = any.includes(needle) ? portsOf(any, address) : [];
					if (found.length > 0) ours.set(name, found);
					else ours.delete(name);
				}
				for (const name of removed) ours.delete(name);
			} else return;
			check();
			if (ours.size === 0) for (const done of leaving) done();
		},
		untilLeft: signal =>
			new Promise(resolve => {
				if (ours.size === 0) resolve();
				const done = () => {
					leaving.delete(done);
					resolve();
				};
				leaving.add(done);
				signal.addEventListener('abort', done, {once: true});
			}),
		status: () => ({ports: ports(), missing: missing(), attempts}),
		stop: async () => stopping.abort(),
	};
}

/** `inbound|8080||` → 8080 */
function inboundPort(cluster: string): number | undefined {
	const [, port] = /^inbound\|(\d+)\|/.exec(cluster) ?? [];
	return port === undefined ? undefined : Number(port);
}

/**
 * Ports of the endpoints with this address. Any: value 2 = ClusterLoadAssignment: endpoints 2 → lb_endpoints 2 →
 * endpoint 1 → address 1 → socket_address 1 {address 2, port_value 3}. What cannot be read has none: Envoy will say
 * what is wrong with it.
 */
function portsOf(any: Buffer, address: string): number[] {
	const found: number[] = [];
	try {
		for (const socket of descend(new FieldReader(any), [2, 2, 2, 1, 1, 1])) {
			let host = '';
			let port = 0;
			while (socket.next()) {
				if (socket.number === 2) host = socket.string();
				else if (socket.number === 3) port = socket.uint();
			}
			if (host === address && port !== 0) found.push(port);
		}
	} catch (error) {
		if (!(error instanceof WireError)) throw error;
	}
	return found;
}

/** Every message at the end of a path of field numbers. */
function* descend(reader: FieldReader, [number, ...rest]: readonly number[]): Generator<FieldReader> {
	if (number === undefined) {
		yield reader;
		return;
	}
	while (reader.next()) if (reader.number === number) yield* descend(reader.message(), rest);
}
