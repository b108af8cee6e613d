import {sleep} from './figures.ts';
import {get, type Target} from './http.ts';

/** One agent with its Envoy, in a directory of its own; may be started again after it has ended. */
export interface Agent {
	readonly label: string;
	readonly pid: number;
	/** Health and metrics. */
	readonly status: Target;
	/** Envoy's admin interface. */
	readonly admin: Target;
	readonly logPath: string;
	/** Of its DNS server on 127.0.0.1. */
	readonly dnsPort: number;
	readonly hasEnded: boolean;
	/** Spawns it, and returns at once. */
	start(): void;
	/** Ends it and its Envoy in order. */
	stop(): Promise<void>;
	/** SIGKILL to the agent alone; its Envoy has ended or goes on, as it will. */
	crash(): Promise<void>;
	/** Ends everything that is left, at once. */
	destroy(): Promise<void>;
	/** Replaces the certificate now; undefined when the agent cannot be asked to. */
	readonly rotate: (() => Promise<unknown>) | undefined;
}

const readyDeadlineMs = 60_000;
const pollMs = 10;

/** Starts the agent. @returns ms from spawning the process to the first 200 of `/healthz/ready` */
export async function startUntilReady(agent: Agent): Promise<number> {
	const fromMs = performance.now();
	agent.start();
	for (;;) {
		const answer = await get(agent.status, '/healthz/ready').catch(() => undefined);
		const tookMs = performance.now() - fromMs;
		if (answer?.status === 200) return tookMs;
		if (agent.hasEnded || tookMs > readyDeadlineMs) {
			const why = agent.hasEnded
				? 'it has ended'
				: `not within ${readyDeadlineMs / 1000} s, last: ${answer?.body ?? 'no answer'}`;
			throw new Error(`${agent.label} is not ready: ${why}; its log is ${agent.logPath}`);
		}
		await sleep(pollMs);
	}
}

export interface EnvoyState {
	/** When Envoy last took an update of any kind, ms since the epoch. */
	readonly lastUpdateAt: number;
	readonly clusters: number;
	readonly warming: number;
}

/** Needs the statistics `…update_time`, which both agents are told to keep. */
export async function readEnvoyState({admin}: Agent): Promise<EnvoyState> {
	const filter = encodeURIComponent('update_time|cluster_manager.(active|warming)_clusters');
	const {body} = await get(admin, `/stats?filter=${filter}`, {timeoutMs: 30_000});
	let [lastUpdateAt, clusters, warming] = [0, 0, 0];
	for (const line of body.split('\n')) {
		const at = line.lastIndexOf(': ');
		const value = Number(line.slice(at + 2));
		if (line.startsWith('cluster_manager.active_clusters:')) clusters = value;
		else if (line.startsWith('cluster_manager.warming_clusters:')) warming = value;
		else if (line.endsWith(': 0') || !line.slice(0, at).endsWith('update_time')) continue;
		else lastUpdateAt = Math.max(lastUpdateAt, value);
	}
	return {lastUpdateAt, clusters, warming};
}
