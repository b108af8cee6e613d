import {never} from '../lifecycle/index.ts';
import {typeUrl} from '../proto/types.ts';
import {FieldWriter} from '../proto/wire.ts';
import {AdsService} from './ads.ts';
import type {Change} from './ads-connection.ts';
import type {AckEvent, ConnectionView, HealthEvent, PushEvent} from './ads-events.ts';
import {authenticate} from './authentication.ts';
import {renderBundle, writeBundle} from './bundle.ts';
import {CertificateAuthority} from './ca.ts';
import {createCertificateMethod} from './ca-service.ts';
import {loadEnvoyTypes} from './envoy-types.ts';
import {EventLog} from './event-log.ts';
import {ConfigGenerator, type Resource, wrapAny} from './generator.ts';
import {GrpcServer, type TlsMaterial} from './grpc-server.ts';
import type {GrpcStatus} from './grpc-wire.ts';
import type {MtlsMode} from './inbound.ts';
import {Registry} from './registry.ts';
import {addSyntheticServices} from './synthetic.ts';
import {TokenAuthority} from './tokens.ts';
import type {BundleRequest, Faults, Sandbox, SandboxOptions} from './types.ts';
import {warmUp} from './warm-up.ts';
import {WorkloadEntries} from './workload-entries.ts';

/** Names of istiod's own certificate. */
const serverNames = ['istiod.istio-system.svc', 'istiod-remote.istio-system.svc', 'istio-pilot.istio-system.svc'];

/** Starts the embedded control plane. @throws when the port is taken, or the signal is aborted meanwhile */
export async function startSandbox(options: SandboxOptions = {}, signal?: AbortSignal): Promise<Sandbox> {
	const control = new ControlPlane(options);
	await control.start(options.port ?? 0);
	if (signal?.aborted) {
		await control.stop();
		throw signal.reason;
	}
	signal?.addEventListener('abort', () => void control.stop(), {once: true});
	return control.face();
}

/** Owns the parts and what they share; everything that survives a restart is a field here. */
class ControlPlane {
	readonly #options: SandboxOptions;
	readonly #trustDomain: string;
	readonly #clusterId: string;
	readonly #registry = new Registry();
	readonly #tokens = new TokenAuthority();
	readonly #entries: WorkloadEntries;
	readonly #generator: ConfigGenerator;
	readonly #pushes = new EventLog<PushEvent>();
	readonly #acks = new EventLog<AckEvent>();
	readonly #reports = new EventLog<HealthEvent>();
	readonly #streams = new EventLog<{state: 'opened' | 'closed'; connection: ConnectionView}>();
	readonly #counts = {token: 0, certificate: 0, refusedHandshakes: 0};
	#ca: CertificateAuthority | undefined;
	#server: GrpcServer | undefined;
	#tls: TlsMaterial | undefined;
	#port = 0;
	#mtls: MtlsMode;
	#isForgettingInbound = false;
	#lifetimeMs: number | undefined;
	#refusal: {ca?: GrpcStatus | undefined; ads?: GrpcStatus | undefined} = {};
	/** Hosts waiting for the debounce; `all` when the change is wider. */
	#pending: Set<string> | 'all' | undefined;
	#debounce: NodeJS.Timeout | undefined;
	readonly #ads: AdsService;

	constructor(options: SandboxOptions) {
		this.#options = options;
		this.#trustDomain = options.trustDomain ?? 'cluster.local';
		this.#clusterId = options.clusterId ?? 'Kubernetes';
		this.#mtls = options.mtls ?? 'permissive';
		this.#lifetimeMs = options.certificateLifetimeMs;
		this.#entries = new WorkloadEntries({
			findGroup: (namespace, name) => this.#registry.group(namespace, name),
			gracePeriodMs: options.gracePeriodMs ?? 10_000,
			onChange: () => this.#change('all'),
		});
		const types = loadEnvoyTypes();
		warmUp(types);
		this.#generator = new ConfigGenerator({
			types,
			registry: this.#registry,
			entries: this.#entries,
			settings: () => ({
				hasIstioExtensions: options.istioExtensions ?? true,
				trustDomain: this.#trustDomain,
				clusterId: this.#clusterId,
				mtls: this.#mtls,
				ports: options.ports ?? {},
			}),
		});
		this.#ads = new AdsService({
			types,
			generator: this.#generator,
			entries: this.#entries,
			authenticate: call => this.#authenticate(call),
			refusal: () => this.#refusal.ads,
			isForgettingInbound: () => this.#isForgettingInbound,
			proxyConfig: () => this.#renderProxyConfig(),
			onPush: event => this.#pushes.add(event),
			onAck: event => this.#acks.add(event),
			onHealth: event => this.#reports.add(event),
			onConnection: (connection, state) => this.#streams.add({state, connection}),
		});
	}

	async start(port: number): Promise<void> {
		this.#ca ??= await CertificateAuthority.create(this.#options.hasIntermediate);
		this.#tls = {...(await this.#ca.issueServerCertificate(serverNames)), rootsPem: this.#ca.rootsPem};
		const {host = '127.0.0.1', keepaliveMs = 30_000, maxConnectionAgeMs} = this.#options;
		const ads = 'envoy.service.discovery.v3.AggregatedDiscoveryService';
		const methods = new Map([
			['/istio.v1.auth.IstioCertificateService/CreateCertificate', this.#certificateMethod()],
			[`/${ads}/DeltaAggregatedResources`, this.#ads.method('delta')],
			[`/${ads}/StreamAggregatedResources`, this.#ads.method('sotw')],
		]);
		this.#server = await GrpcServer.start({methods, tls: this.#tls, host, port, keepaliveMs, maxConnectionAgeMs});
		this.#port = this.#server.port;
		this.#entries.resume();
	}

	async stop(): Promise<void> {
		clearTimeout(this.#debounce);
		// First: what the closing streams would start must not outlive the process that this plays.
		this.#entries.suspend();
		const server = this.#server;
		this.#server = undefined;
		this.#counts.refusedHandshakes += server?.refusedHandshakes.length ?? 0;
		await server?.stop();
	}

	face(): Sandbox {
		const host = this.#options.host ?? '127.0.0.1';
		const port = () => this.#port;
		const counts = this.#countsView();
		return {
			finished: never,
			stop: () => this.stop(),
			get address() {
				return `${host}:${port()}`;
			},
			get port() {
				return port();
			},
			rootPem: () => this.#ca!.rootsPem,
			issueCertificate: (csrPem, issue) => this.#ca!.issue(csrPem, issue),
			issueToken: request => this.#tokens.issue(request),
			addWorkloadGroup: group => this.#registry.addGroup(group),
			removeWorkloadGroup: (namespace, name) => this.#registry.removeGroup(namespace, name),
			addService: service => this.#change(new Set([this.#registry.addService(service).host])),
			removeService: (name, servicePort) => {
				if (this.#registry.removeServices(new Set([name]), servicePort)) this.#change(new Set([name]));
			},
			addServices: count => this.#change(addSyntheticServices(this.#registry, count, this.#trustDomain)),
			touchServices: (changed = 0) => {
				const hosts = this.#registry.touch(changed);
				this.#change(changed > 0 ? hosts : 'all');
			},
			setMtls: mode => {
				this.#mtls = mode;
				this.#change('all');
			},
			setCertificateLifetimeMs: ms => {
				this.#lifetimeMs = ms;
			},
			workloadEntries: () => this.#entries.list(),
			putWorkloadEntry: entry => this.#entries.put(entry),
			deleteWorkloadEntry: (namespace, name) => this.#entries.delete(namespace, name),
			connections: () => this.#ads.connections(),
			pushes: this.#pushes,
			acks: this.#acks,
			reports: this.#reports,
			streams: this.#streams,
			waitForAck: (type, {sinceMs = performance.now(), deadlineMs} = {}) =>
				this.#acks.waitFor(
					`ACK of ${type}`,
					ack => ack.typeUrl === type && !ack.error && ack.at >= sinceMs,
					deadlineMs,
				),
			counts,
			faults: this.#faults(),
			writeBundle: (directory, request) => this.#writeBundle(directory, request),
		};
	}

	#countsView(): Sandbox['counts'] {
		const counts = this.#counts;
		const ads = this.#ads;
		const current = () => this.#server?.refusedHandshakes.length ?? 0;
		return {
			get issuedByToken() {
				return counts.token;
			},
			get issuedByCertificate() {
				return counts.certificate;
			},
			get streamsOpened() {
				return ads.opened;
			},
			get refusedHandshakes() {
				return counts.refusedHandshakes + current();
			},
		};
	}

	#faults(): Faults {
		return {
			stopAnswering: () => this.#server?.hold(),
			resume: () => this.#server?.release(),
			refuse: what => {
				this.#refusal = {...this.#refusal, ...what};
			},
			slow: ms => this.#server?.delay(ms),
			forgetInbound: isOn => {
				this.#isForgettingInbound = isOn;
			},
			closeConnections: () => this.#server?.closeConnections(),
			rotateRoot: async () => {
				await this.#ca!.rotateRoot();
				this.#useRoots({});
			},
			dropOldRoot: async () => {
				this.#ca!.dropOldRoot();
				this.#useRoots(await this.#ca!.issueServerCertificate(serverNames));
			},
			stop: () => this.stop(),
			restart: async ({port = this.#port, newCa = false} = {}) => {
				await this.stop();
				if (newCa) this.#ca = undefined;
				await this.start(port);
			},
		};
	}

	#useRoots(material: Partial<TlsMaterial>): void {
		this.#tls = {...this.#tls!, ...material, rootsPem: this.#ca!.rootsPem};
		this.#server?.replaceTls(this.#tls);
		if (this.#options.isMultiRoot) this.#change('all');
	}

	#authenticate(call: Parameters<typeof authenticate>[0]): ReturnType<typeof authenticate> {
		return authenticate(call, {tokens: this.#tokens, trustDomain: this.#trustDomain, clusterId: this.#clusterId});
	}

	#certificateMethod() {
		return createCertificateMethod({
			ca: () => this.#ca!,
			authenticate: call => this.#authenticate(call),
			refusal: () => this.#refusal.ca,
			lifetimeMs: () => this.#lifetimeMs,
			onIssued: ({kind}) => {
				this.#counts[kind]++;
			},
		});
	}

	/** Collects changes until they have been quiet for a while, then pushes them as one. */
	#change(hosts: Set<string> | 'all'): void {
		this.#generator.invalidate();
		this.#pending = hosts === 'all' || this.#pending === 'all' ? 'all' : new Set([...(this.#pending ?? []), ...hosts]);
		clearTimeout(this.#debounce);
		this.#debounce = setTimeout(() => {
			const change: Change = this.#pending === 'all' ? {} : {hosts: this.#pending ?? new Set()};
			this.#pending = undefined;
			this.#ads.push(change);
		}, this.#options.debounceMs ?? 100).unref();
	}

	/** istio.mesh.v1alpha1.ProxyConfig with ca_certificates_pem (34) alone. */
	#renderProxyConfig(): Resource | undefined {
		if (!this.#options.isMultiRoot) return undefined;
		const roots = this.#ca!.rootsPem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\n/g) ?? [];
		return {name: '', any: wrapAny(typeUrl.proxyConfig, new FieldWriter().strings(34, roots).finish())};
	}

	async #writeBundle(directory: string, request: BundleRequest): Promise<string> {
		const {namespace, group: name, serviceAccount, tokenLifetimeMs, ...options} = request;
		const group = this.#registry.group(namespace, name);
		if (!group) throw new Error(`workloadgroup ${name} not found in namespace ${namespace}`);
		const account = serviceAccount ?? group.serviceAccount ?? 'default';
		const files = renderBundle(
			{
				group: {...group, serviceAccount: account},
				clusterId: this.#clusterId,
				trustDomain: this.#trustDomain,
				rootPem: this.#ca!.rootsPem,
				token: this.#tokens.issue({
					namespace,
					serviceAccount: account,
					...(tokenLifetimeMs ? {lifetimeMs: tokenLifetimeMs} : {}),
				}),
				discoveryAddress: `istiod.istio-system.svc:${this.#port}`,
			},
			options,
		);
		await writeBundle(directory, files);
		return directory;
	}
}
