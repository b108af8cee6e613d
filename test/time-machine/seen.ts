import type {LocalWorkload} from '../../src/sandbox/local-workload.ts';
import type {StatusReport} from '../../src/status/index.ts';

type Secrets = Readonly<Record<string, {readonly isCurrent: boolean}>>;

/** `onramp status --json`, as far as it is looked at here. */
export interface Seen {
	readonly report: StatusReport;
	readonly identity: {
		readonly state: string;
		readonly serial?: string;
		readonly notBefore?: string;
		readonly notAfter?: string;
		readonly nextRotationAt?: string;
		readonly rootCount: number;
		readonly lastError?: {readonly code: string; readonly message: string};
		readonly warnings: readonly string[];
	};
	readonly upstream: {
		readonly state: string;
		readonly nextAttemptAt?: string;
		readonly lastError?: {readonly message: string};
	};
	readonly servingSaved: string | undefined;
	readonly rejections: readonly unknown[];
	/** Envoy uses certificate and roots as they are now: its streams for them come back later than others. */
	readonly hasSecrets: boolean;
	/** Envoy has its stream to the agent. */
	readonly isHeard: boolean;
	/** Envoy is up, and has its stream to the agent. */
	readonly hasEnvoy: boolean;
}

/** Undefined while there is no agent that answers with all its parts. */
export async function seeStatus(workload: LocalWorkload): Promise<Seen | undefined> {
	const report = await workload.status().catch(() => undefined);
	const {identity, relay, proxy, secrets} = (report?.parts ?? {}) as Record<string, never>;
	if (!report || !identity || !relay || !proxy) return undefined;
	const {upstream, servingSaved, rejections, sessions} = relay as Pick<
		Seen,
		'upstream' | 'servingSaved' | 'rejections'
	> & {
		sessions: number;
	};
	const hasEnvoy = sessions > 0 && report.gates.some(({name, open}) => name === 'proxy' && open);
	const hasSecrets = ['default', 'ROOTCA'].every(name => (secrets as Secrets | undefined)?.[name]?.isCurrent);
	return {report, hasSecrets, identity, upstream, servingSaved, rejections, isHeard: sessions > 0, hasEnvoy};
}
