import {type Clock, never, type Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {type OwnEndpoint, OwnEndpoints, type SeenResponse} from './own-endpoints.ts';

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
	/** Our address among the endpoints of services, as callers are told of it. */
	endpoints(): readonly OwnEndpoint[];
	/** Calls back when that may have changed. Returns how to stop it. */
	onChange(listener: () => void): () => void;
	/** Our address is another one now. */
	forget(): void;
	/** Resolves when, as far as the control plane has told us, nobody is sent to us any more; or with the signal. */
	untilLeft(signal: AbortSignal): Promise<void>;
}

export interface OwnInboundDeps {
	/** Of our WorkloadEntry. */
	readonly address: () => string;
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
	const own = new OwnEndpoints(address);
	const listeners = new Set<() => void>();
	let attempts = 0;
	let known = '';
	let timer: AbortController | undefined;

	const sentTo = () => own.all().filter(({isHealthy}) => isHealthy);
	const ports = () => [...new Set(sentTo().map(({port}) => port))].sort((a, b) => a - b);
	const missing = () => ports().filter(port => !own.served.has(port));

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
		see: (response, isWhole) => {
			if (!own.see(response, isWhole)) return;
			check();
			for (const listener of listeners) listener();
		},
		endpoints: () => own.all(),
		onChange: listener => {
			listeners.add(listener);
			return () => listeners.delete(listener);
		},
		forget: () => own.forget(),
		untilLeft: signal =>
			new Promise(resolve => {
				const look = () => {
					if (sentTo().length > 0 && !signal.aborted) return;
					listeners.delete(look);
					resolve();
				};
				listeners.add(look);
				signal.addEventListener('abort', look, {once: true});
				look();
			}),
		status: () => ({ports: ports(), missing: missing(), attempts}),
		stop: async () => stopping.abort(),
	};
}
