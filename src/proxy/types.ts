import type {ProxyConfig} from '../config/types.ts';
import type {Clock, Gate, Metrics, Running} from '../lifecycle/index.ts';
import type {Logger, Secret} from '../log.ts';
import type {AdminClient} from './admin.ts';

/**
 * What the Envoy process is doing. `starting`: spawned or adopted, not yet seen serving. `waiting`: not spawned,
 * because something outside must change first (a port, the binary). `backing-off`: it ended and is started again
 * after a wait. `failed`: it ended more often than the crash budget allows; started again only every
 * `restartBackoffMaxMs`. `draining`, `stopped`: asked for.
 */
export type ProxyState = 'off' | 'starting' | 'waiting' | 'running' | 'backing-off' | 'failed' | 'draining' | 'stopped';

/** How Envoy last ended without being asked to. */
export interface LastExit {
	/** Undefined when it was not our child (adopted): nobody but the parent can read it. */
	readonly code: number | undefined;
	readonly signal: string | undefined;
	readonly at: Date;
	/** The last 40 lines of its log and standard error, oldest first. */
	readonly logTail: readonly string[];
}

export interface ProxyStatus {
	readonly state: ProxyState;
	/** Undefined while no process runs, and in modes `unit` and `external`. */
	readonly pid: number | undefined;
	/** `1.40.0`; undefined until known. */
	readonly version: string | undefined;
	/** Taken over from an earlier agent. */
	readonly adopted: boolean;
	/** Unexpected exits since this agent started. */
	readonly restarts: number;
	readonly lastExit?: LastExit | undefined;
	/** What goes less well than asked for. */
	readonly warnings?: readonly string[];
	/** The Envoy it replaced, which serves its last connections: its pid, or its unit in mode `unit`. */
	readonly retiring?: number | string | undefined;
	/** Wall-clock time of the last change of `state`. */
	readonly since: Date;
}

export interface ProxyDeps {
	readonly config: ProxyConfig;
	/** Envoy's `node`: `{id, cluster, locality, metadata}` as proto-JSON. */
	readonly node: Readonly<Record<string, unknown>>;
	/** Where our ADS and SDS answer, see `startXdsSocket`. */
	readonly xdsSocketPath: string;
	/** Where the agent's own HTTP port is bound; a wildcard is asked over loopback. */
	readonly statusAddress: string;
	/** The agent's own HTTP port, to which Envoy's readiness listener forwards; 0 = it has none. */
	readonly statusPort: number;
	readonly gate: Gate;
	readonly log: Logger;
	readonly metrics: Metrics;
	readonly clock: Clock;
	/** In [0, 1). */
	readonly random: () => number;
}

/** Envoy as the rest of the agent sees it. */
export interface EnvoyProxy extends Running {
	status(): ProxyStatus;
	/** Envoy's statistics in the Prometheus format, used ones only. Rejects with `proxy.admin_failed`. */
	scrape(acceptHeader?: string): Promise<string>;
	/** Takes no new work and waits until requests in flight are done or the ceiling is reached. Envoy goes on running. */
	drain(): Promise<void>;
	/**
	 * Lets a new Envoy (another binary at its place, say) take over from the one that serves; no request is lost.
	 * Rejects with `proxy.replacement_failed`: the old one goes on.
	 */
	replace(): Promise<void>;
	/** Something has happened that may have made it ready: look now rather than at the next turn. */
	lookNow(): void;
	readonly admin: AdminClient;
}

/** The workload certificate with its chain (leaf first), key and trust bundle; one generation, they belong together. */
export interface SecretMaterial {
	readonly chainPem: string;
	readonly keyPem: Secret;
	readonly trustBundlePem: string;
}

export interface SecretSource {
	/** Undefined until the first certificate is there. */
	current(): SecretMaterial | undefined;
	/** Calls back after each change. Returns how to stop that. */
	onChange(listener: () => void): () => void;
}
