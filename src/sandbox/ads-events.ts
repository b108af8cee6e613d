import type {ProxyNode} from './node.ts';

export interface PushEvent {
	readonly connection: string;
	readonly typeUrl: string;
	readonly nonce: string;
	/** performance.now() when it was handed to the socket. */
	readonly at: number;
	readonly bytes: number;
	readonly resources: number;
	readonly removed: number;
}

export interface AckEvent {
	readonly connection: string;
	readonly typeUrl: string;
	readonly nonce: string;
	readonly at: number;
	/** Present when the client refused the push. */
	readonly error?: {readonly code: number; readonly message: string};
}

/** A HealthInformation that was sent. */
export interface HealthEvent {
	readonly connection: string;
	readonly at: number;
	readonly isHealthy: boolean;
	readonly message: string;
}

export interface ConnectionView {
	/** `vm1.bar-17`. */
	readonly id: string;
	readonly node: ProxyNode;
	/** SPIFFE ID that passed the check. */
	readonly identity: string;
	readonly protocol: Protocol;
	readonly typesWatched: readonly string[];
}

export type Protocol = 'delta' | 'sotw';
