import type {Running} from '../lifecycle/index.ts';
import type {AckEvent, ConnectionView, HealthEvent, PushEvent} from './ads-events.ts';
import type {BundleOptions} from './bundle.ts';
import type {IssueOptions} from './ca.ts';
import type {EventLog} from './event-log.ts';
import type {WorkloadPorts} from './generator.ts';
import type {GrpcStatus} from './grpc-wire.ts';
import type {MtlsMode} from './inbound.ts';
import type {ServiceSpec, WorkloadGroupSpec} from './registry.ts';
import type {TokenRequest} from './tokens.ts';
import type {WorkloadEntry} from './workload-entries.ts';

export interface SandboxOptions {
	/** 127.0.0.1 unless given. */
	readonly host?: string;
	/** 0, or nothing, takes a free one; it is kept over restarts. */
	readonly port?: number;
	readonly trustDomain?: string;
	readonly clusterId?: string;
	/** Send the filters that only Istio's Envoy knows, as istiod does. On unless false. */
	readonly istioExtensions?: boolean;
	/** `permissive` unless given, as in Istio. */
	readonly mtls?: MtlsMode;
	/** Sign with an intermediate below the root: certificate answers then have three elements. */
	readonly hasIntermediate?: boolean;
	/** `ISTIO_MULTIROOT_MESH`: the trust bundle also goes out over ADS (PCDS). */
	readonly isMultiRoot?: boolean;
	/** How long a WorkloadEntry outlives its connection; 10 s. */
	readonly gracePeriodMs?: number;
	/** Quiet time before a change is pushed; 100 ms, as istiod. */
	readonly debounceMs?: number;
	readonly certificateLifetimeMs?: number;
	readonly maxConnectionAgeMs?: number;
	readonly keepaliveMs?: number;
	/** By node name; where the Envoys of one machine bind. */
	readonly ports?: Readonly<Record<string, WorkloadPorts>>;
}

export interface Faults {
	/** Connections are accepted and requests read, but nothing is ever said; until `resume`. */
	stopAnswering(): void;
	/** Answers what has come in meanwhile, too. */
	resume(): void;
	/** Every call of that kind ends with this status; `undefined` ends the refusal. */
	refuse(what: {readonly ca?: GrpcStatus | undefined; readonly ads?: GrpcStatus | undefined}): void;
	/** Every answer is this late; 0 ends it. */
	slow(ms: number): void;
	/**
	 * While on, streams that make a WorkloadEntry get no inbound clusters and listeners, whatever is pushed later. istiod
	 * does so when the new entry reaches its index late; the next stream, which finds the entry there, is told.
	 */
	forgetInbound(isOn: boolean): void;
	closeConnections(): void;
	/** A new root signs from now on; the bundle holds both. The server keeps its own certificate until a restart. */
	rotateRoot(): Promise<void>;
	/** The bundle holds only the newest root, and so do the roots for client certificates. */
	dropOldRoot(): Promise<void>;
	/** Refuses connections, as a control plane that is gone; entries, groups and services stay, as Kubernetes keeps them. */
	stop(): Promise<void>;
	/** A new process: same port unless given; `newCa` makes a CA that nobody trusts yet. */
	restart(options?: {readonly port?: number; readonly newCa?: boolean}): Promise<void>;
}

export interface BundleRequest extends BundleOptions {
	readonly group: string;
	readonly namespace: string;
	/** Of the token; the group's unless given. */
	readonly serviceAccount?: string;
}

export interface Sandbox extends Running {
	/** `HOST:PORT`. */
	readonly address: string;
	readonly port: number;
	/** The trust bundle: one root, or several during a rotation. */
	rootPem(): string;
	issueToken(request: TokenRequest): string;
	/** Signs as `CreateCertificate` does, for workloads whose certificates come another way. */
	issueCertificate(csrPem: string, options: IssueOptions): readonly string[];
	addWorkloadGroup(group: WorkloadGroupSpec): void;
	removeWorkloadGroup(namespace: string, name: string): void;
	/** One port of one service; pushed after the debounce time. */
	addService(service: ServiceSpec): void;
	removeService(host: string, port?: number): void;
	/** `count` HTTP services on port 80, as one push; the same names each time, so a smaller count removes the rest. */
	addServices(count: number): void;
	/** Pushes everything; `changed` services get new content first. */
	touchServices(changed?: number): void;
	setMtls(mode: MtlsMode): void;
	/** Instead of what clients ask for; `undefined` gives them that again. */
	setCertificateLifetimeMs(ms: number | undefined): void;
	workloadEntries(): readonly WorkloadEntry[];
	/** What somebody has written through the Kubernetes API. */
	putWorkloadEntry(entry: WorkloadEntry): void;
	/** Behind the back of whoever registered it. */
	deleteWorkloadEntry(namespace: string, name: string): void;
	connections(): readonly ConnectionView[];
	readonly pushes: EventLog<PushEvent>;
	readonly acks: EventLog<AckEvent>;
	readonly reports: EventLog<HealthEvent>;
	readonly streams: EventLog<{readonly state: 'opened' | 'closed'; readonly connection: ConnectionView}>;
	/** The first ACK of a type at or after `sinceMs` (performance.now(); now unless given). Rejects after `deadlineMs`, 10 s. */
	waitForAck(typeUrl: string, options?: {readonly sinceMs?: number; readonly deadlineMs?: number}): Promise<AckEvent>;
	readonly counts: {
		readonly issuedByToken: number;
		readonly issuedByCertificate: number;
		readonly streamsOpened: number;
		readonly refusedHandshakes: number;
	};
	readonly faults: Faults;
	/** Writes cluster.env, mesh.yaml, root-cert.pem, istio-token and hosts. @returns the directory */
	writeBundle(directory: string, request: BundleRequest): Promise<string>;
}
