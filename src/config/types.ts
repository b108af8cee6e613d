import type {Secret} from '../log.ts';

/** One address of the control plane, in order of preference. */
export interface Endpoint {
	readonly host: string;
	readonly port: number;
	/** No TLS. Istio's port 15010; gives no identity, so nothing but reading configuration works there. */
	readonly isPlaintext: boolean;
}

export type TrustAnchor = {readonly kind: 'file'; readonly path: string} | {readonly kind: 'system'};

export type KeyType = 'ecdsa-p256' | 'ecdsa-p384' | 'rsa-2048' | 'rsa-3072' | 'rsa-4096';

/** Where the workload certificate comes from. */
export type IdentitySource =
	| {readonly kind: 'control-plane'}
	/** Files that something else keeps fresh; watched. */
	| {readonly kind: 'files'; readonly certPath: string; readonly keyPath: string; readonly rootPath: string}
	/** A SPIRE agent or another SDS server on a Unix socket. */
	| {readonly kind: 'sds'; readonly socketPath: string};

/** Who this workload is. */
export interface WorkloadConfig {
	/** Trust domain of our SPIFFE ID; an empty TRUST_DOMAIN in the bundle means `cluster.local`. */
	readonly trustDomain: string;
	readonly namespace: string;
	readonly serviceAccount: string;
	/** Name of this VM (POD_NAME), the host name by default. */
	readonly name: string;
	/** `clusterid` header and CLUSTER_ID; `Kubernetes` by default. */
	readonly clusterId: string;
	/** First is the address that names the WorkloadEntry; stable over reboots. Never empty. */
	readonly addresses: readonly string[];
	/** WorkloadGroup that istiod is to register us in (AUTO_REGISTER_GROUP), or undefined: nobody, or we ourselves. */
	readonly group: string | undefined;
	/** DNS domain in the node id. */
	readonly domain: string;
	/** Envoy's node.cluster, `GROUP.NAMESPACE` on a VM. */
	readonly serviceCluster: string;
	readonly labels: Readonly<Record<string, string>>;
	/** `region/zone/subzone` or ''. */
	readonly locality: string;
	/** Free metadata: every `ISTIO_META_X` as `X`, except those named above. Values are strings. */
	readonly metadata: Readonly<Record<string, string>>;
	/** The effective ProxyConfig as proto-JSON, sent as PROXY_CONFIG. */
	readonly proxyConfig: Readonly<Record<string, unknown>>;
	/** ISTIO_VERSION told to the control plane; an Istio release whose Envoy generation is ours. */
	readonly istioVersion: string;
	/** Whether names of the mesh are answered on this machine (DNS_CAPTURE); `dns.mode` decides. */
	readonly isDnsCaptured: boolean;
}

export interface ControlPlaneConfig {
	/** ADS endpoints, in order of preference. At least one. */
	readonly endpoints: readonly Endpoint[];
	/** CA endpoints, in order of preference. At least one; the ADS endpoints unless CA_ADDR is set. */
	readonly caEndpoints: readonly Endpoint[];
	/** TLS server name to verify instead of the endpoint's host (ISTIOD_SAN); applies to CA and ADS. */
	readonly serverName: string | undefined;
	readonly trustAnchor: TrustAnchor;
	readonly caTrustAnchor: TrustAnchor;
	/** Host name → addresses from the bundle's `hosts`; looked at before DNS, never written to /etc/hosts. */
	readonly hosts: Readonly<Record<string, readonly string[]>>;
	/** Extra gRPC metadata (XDS_HEADER_*, CA_HEADER_*); names in lower case. */
	readonly xdsHeaders: Readonly<Record<string, string>>;
	readonly caHeaders: Readonly<Record<string, string>>;
	/** Bootstrap token; read at each use. */
	readonly tokenPath: string;
	/** The same as systemd has handed it over; counts first, as long as it can be used. */
	readonly credentialPath: string | undefined;
	/** Prints the bootstrap token; run instead of reading a file. Empty: there is none. */
	readonly tokenProgram: readonly string[];
	/** Audience the control plane asks for, `istio-ca`. */
	readonly tokenAudience: string;
	readonly connectTimeoutMs: number;
	readonly keepaliveMs: number;
	readonly keepaliveTimeoutMs: number;
	/** Full-jitter reconnect backoff. */
	readonly backoffBaseMs: number;
	readonly backoffMaxMs: number;
}

export interface IdentityConfig {
	readonly source: IdentitySource;
	readonly keyType: KeyType;
	/** Asked for; the control plane may give less. */
	readonly certificateLifetimeMs: number;
	/** Share of the life after which to rotate, 0.5. */
	readonly rotateAtShare: number;
	/** ± share of the life, 0.1 by default. */
	readonly rotateJitter: number;
	/** Rotate early enough that this much life is always left, as far as the life allows ("ride out N hours"). 0 = off. */
	readonly rideOutMs: number;
	/** Cap of the backoff between failed rotations. */
	readonly retryMaxMs: number;
	/** Upper bound of the wait between joining and the trial renewal without the token. */
	readonly trialDelayMs: number;
	/** Directory for generations, below the state directory. */
	readonly stateDir: string;
	/** Also write cert-chain.pem, key.pem, root-cert.pem here (OUTPUT_CERTS), or undefined. */
	readonly outputDir: string | undefined;
	/** CertSigner in the request's metadata, or ''. */
	readonly certSigner: string;
	/** Mode of the key in the output directory. 0600 by default. */
	readonly outputKeyMode: number;
}

export interface RelayConfig {
	/** Towards the control plane. */
	readonly protocol: 'delta' | 'sotw';
	/** Ask for the name table. */
	readonly isNameTableWanted: boolean;
	/** Ask for ProxyConfig (trust bundle updates; PROXY_CONFIG_XDS_AGENT). */
	readonly isProxyConfigWanted: boolean;
	/** `auto`: take out what this Envoy lacks. `never`: forward everything as it is. */
	readonly removeUnknownExtensions: 'auto' | 'never';
	/** Unix socket for Envoy's ADS and SDS. */
	readonly socketPath: string;
	/** Where the configuration is kept for a start without control plane; undefined: it is not. */
	readonly snapshotDir: string | undefined;
}

export interface ProxyConfig {
	/**
	 * `spawn`: the agent runs Envoy. `unit`: a systemd unit does, by a script that the agent writes beside the bootstrap.
	 * `external`: another supervisor does; the agent writes the bootstrap and watches. `off`: no Envoy.
	 */
	readonly mode: 'spawn' | 'unit' | 'external' | 'off';
	readonly binaryPath: string;
	/** Where the bootstrap is written. */
	readonly bootstrapPath: string;
	readonly adminSocketPath: string;
	readonly logPath: string;
	/** Record of the running Envoy, for adoption. */
	readonly recordPath: string;
	/** The log file is moved away and reopened past this size. */
	readonly logMaxBytes: number;
	/** Worker threads; 2 by default on VMs, `0` = all CPUs. */
	readonly concurrency: number;
	readonly logLevel: string;
	/** `--component-log-level`, or ''. */
	readonly componentLogLevel: string;
	readonly adsProtocol: 'delta' | 'sotw';
	/** Envoy's own listeners, with the address to bind (`0.0.0.0`, `127.0.0.1`, `::`). */
	readonly readinessPort: number;
	readonly metricsPort: number;
	readonly listenAddress: string;
	/** drainDuration: `--drain-time-s`. */
	readonly drainMs: number;
	/** terminationDrainDuration: how long a stop waits at least. */
	readonly terminationDrainMs: number;
	/** Ceiling of the wait for requests in flight on stop. */
	readonly drainCeilingMs: number;
	/** How long an Envoy that replaces another may take to serve as much. */
	readonly replaceTimeoutMs: number;
	/** How long connections may go on with an Envoy that was replaced. */
	readonly replaceCeilingMs: number;
	/** More than this many unexpected exits within the window means `failed`. */
	readonly crashBudget: number;
	readonly crashWindowMs: number;
	readonly restartBackoffBaseMs: number;
	readonly restartBackoffMaxMs: number;
	readonly maxDownstreamConnections: number;
	/** Additional inclusion prefixes, suffixes, regexes of statistics (proxyStatsMatcher). */
	readonly statsPrefixes: readonly string[];
	readonly statsSuffixes: readonly string[];
	readonly statsRegexes: readonly string[];
	/** Runtime keys laid over the defaults; '' deletes. */
	readonly runtimeValues: Readonly<Record<string, string>>;
	/** Further command line arguments for Envoy. */
	readonly extraArguments: readonly string[];
	/** Start a stopping agent leaves Envoy running (adoption) or ends it: `stop` ends it. */
	readonly onStop: 'stop' | 'leave';
}

export interface DnsConfig {
	/** `capture`: rules lead port 53 to us. `resolved`: systemd-resolved asks us for the mesh's domains. `off`: no server. */
	readonly mode: 'capture' | 'resolved' | 'off';
	/** UDP and TCP on each. */
	readonly addresses: readonly string[];
	readonly port: number;
	/** Asked for foreign names; empty = those of resolv.conf, followed. */
	readonly upstreams: readonly {readonly address: string; readonly port: number}[];
	readonly resolvConfPath: string;
	/** Where systemd-resolved lists the servers behind its stub. */
	readonly resolvedConfPath: string;
	/** All tries of one question. */
	readonly timeoutMs: number;
	/** Of answers from the name table. */
	readonly ttlSeconds: number;
	/** Domains never asked for elsewhere; undefined = that of the cluster. */
	readonly meshDomains: readonly string[] | undefined;
	/** Questions asked elsewhere at one time; past this they are refused. */
	readonly mostInFlight: number;
	/** Directory for the name table, below the state directory. */
	readonly stateDir: string;
	/** Link whose domains systemd-resolved gets, with mode `resolved`. */
	readonly link: string;
}

export interface StatusConfig {
	/** Address and port of health and metrics; port 0 = no TCP listener. */
	readonly address: string;
	readonly port: number;
	/** Unix socket for the CLI. */
	readonly controlSocketPath: string;
	/** The application's metrics to merge, or undefined (ISTIO_PROMETHEUS_ANNOTATIONS). */
	readonly appMetrics: readonly {readonly port: number; readonly path: string}[];
	readonly isEnvoyMerged: boolean;
}

export interface CaptureConfig {
	/** False: rules are somebody else's business (ISTIO_CUSTOM_IP_TABLES). */
	readonly isEnabled: boolean;
	/** The agent puts them in and takes them away; otherwise whoever runs `onramp capture`. */
	readonly isByAgent: boolean;
	readonly backend: 'auto' | 'nft' | 'iptables-nft' | 'iptables-legacy';
	readonly interception: 'redirect' | 'tproxy';
	/** Users of agent and Envoy, names or numbers; their primary groups are exempt, too. */
	readonly users: readonly string[];
	/** Further groups that are exempt. */
	readonly groups: readonly string[];
	/** Envoy's listeners. */
	readonly outboundPort: number;
	readonly inboundPort: number;
	/** HBONE; reached directly. */
	readonly tunnelPort: number;
	/** Ports that agent and Envoy answer on for the outside. */
	readonly ownPorts: readonly {readonly port: number; readonly use: string}[];
	readonly inboundPorts: '*' | readonly number[];
	readonly inboundExcludePorts: readonly number[];
	/** Both families, mixed. */
	readonly outboundCidrs: '*' | readonly string[];
	readonly outboundExcludeCidrs: readonly string[];
	/** Captured whatever the destination. */
	readonly outboundPorts: readonly number[];
	readonly outboundExcludePorts: readonly number[];
	readonly excludeInterfaces: readonly string[];
	/** What comes in there is treated as outbound (KUBE_VIRT_INTERFACES). */
	readonly outboundInterfaces: readonly string[];
	/** Bridges to containers and virtual machines. */
	readonly bridges: 'ignore' | 'outbound';
	readonly outboundUsers: '*' | readonly string[];
	readonly outboundExcludeUsers: readonly string[];
	readonly outboundGroups: '*' | readonly string[];
	readonly outboundExcludeGroups: readonly string[];
	/** systemd units, or control groups by path; none = all. */
	readonly units: readonly string[];
	readonly excludeUnits: readonly string[];
	/** IPv4 destinations that are meant as loopback. */
	readonly loopbackCidr: string;
	/** `servers`: questions to the servers of resolv.conf. `all`: to any server. */
	readonly dns: 'off' | 'servers' | 'all';
	readonly dnsPort: number;
	readonly ipv6: 'capture' | 'reject' | 'ignore';
	readonly dropInvalid: boolean;
	/** The mark after it is used as well. */
	readonly tproxyMark: number;
	readonly tproxyTable: number;
	readonly onAgentDown: 'hold' | 'bypass' | 'block';
	readonly onDrift: 'repair' | 'report';
	/** Connections from before the rules. */
	readonly existingConnections: 'leave' | 'end';
	/** Further things that must answer after an apply as they did before: `tcp://host:port`, `dns:name`. */
	readonly probes: readonly string[];
	/** How long Envoy and DNS may take to answer before an apply is given up. */
	readonly waitMs: number;
	readonly stateDir: string;
	/** Which rules have held on this machine; kept over a reboot. */
	readonly provedPath: string;
}

/** Which of this machine's addresses names our WorkloadEntry. */
export type AddressRule =
	/** The one that packets to the control plane are sent from. */
	| {readonly kind: 'route'}
	/** A `*` at the end stands for any rest. */
	| {readonly kind: 'interface'; readonly name: string}
	| {readonly kind: 'cidr'; readonly cidr: string}
	/** The one that the cloud names. */
	| {readonly kind: 'metadata'};

export interface AddressConfig {
	/** Somebody has said which it is: it does not change. */
	readonly isFixed: boolean;
	/** Tried in this order. */
	readonly rules: readonly AddressRule[];
	/** Addresses of the control plane, as far as they are known without asking anybody. */
	readonly towards: readonly string[];
}

export interface CloudConfig {
	/** `auto`: as the firmware says. */
	readonly mode: 'auto' | 'off' | 'aws' | 'gce' | 'azure';
	/** How long a start that knows nothing yet waits for an answer. */
	readonly waitMs: number;
	/** `http://ADDRESS[:PORT]`, link-local. */
	readonly endpoint: string;
}

/** What a probe asks. A host that is left out is the address that names our WorkloadEntry, as in Istio. */
export type ProbeCheck =
	| {
			readonly kind: 'http';
			readonly scheme: 'http' | 'https';
			readonly host: string | undefined;
			readonly port: number;
			readonly path: string;
			readonly headers: readonly {readonly name: string; readonly value: string}[];
	  }
	| {readonly kind: 'tcp'; readonly host: string | undefined; readonly port: number}
	| {readonly kind: 'exec'; readonly command: readonly string[]}
	| {readonly kind: 'grpc'; readonly port: number; readonly service: string};

/** One probe of the application; what the numbers mean, Kubernetes documents. */
export interface ProbeConfig {
	readonly name: string;
	readonly check: ProbeCheck;
	readonly initialDelayMs: number;
	readonly periodMs: number;
	readonly timeoutMs: number;
	readonly successThreshold: number;
	readonly failureThreshold: number;
}

export interface HealthConfig {
	/**
	 * `auto`: as the probes say, and nothing is reported without one. `always`: reported without one too. `manual`:
	 * only once the application has said that it is ready. `off`: never reported.
	 */
	readonly mode: 'auto' | 'always' | 'manual' | 'off';
	/** Whether the WorkloadEntry is to have health: then it gets no traffic until we say that it is healthy. */
	readonly isReported: boolean;
	readonly probes: readonly ProbeConfig[];
	/** Host of probes that name none: our address, or `localhost` (REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION). */
	readonly defaultHost: 'address' | 'localhost';
	/** About how often the report is repeated, ± a quarter. */
	readonly reassertMs: number;
	/** Directory for what was said with `onramp ready` and `onramp unready`. */
	readonly stateDir: string;
}

/** How the Kubernetes API is reached, and who we are there. Files are read each time they are used. */
export type KubernetesConfig =
	| {readonly kind: 'kubeconfig'; readonly path: string}
	| {
			readonly kind: 'server';
			/** `https://HOST[:PORT][/PATH]`. */
			readonly server: string;
			readonly trustAnchor: TrustAnchor;
			readonly tokenPath: string;
	  };

/** Who writes our WorkloadEntry. */
export type RegistrationConfig =
	/** istiod, when our stream names the WorkloadGroup of {@link WorkloadConfig.group}; or nobody, without one. */
	| {readonly mode: 'auto' | 'off'}
	/** We do. */
	| {
			readonly mode: 'direct';
			/** The WorkloadGroup whose template it is made from. */
			readonly group: string;
			/** undefined: as istiod would name it. */
			readonly entryName: string | undefined;
			/** About how often it is looked at, ± a quarter. */
			readonly checkMs: number;
			readonly kubernetes: KubernetesConfig;
			/** Directory for which machine we are and which entries are ours, below the state directory. */
			readonly stateDir: string;
	  };

export interface LogConfig {
	readonly level: 'debug' | 'info' | 'warn' | 'error';
	readonly format: 'json' | 'text';
}

/** Everything the agent runs by. Deep-frozen; parsed once; nothing downstream asks "was it set?". */
export interface Config {
	readonly stateDir: string;
	readonly runDir: string;
	readonly workload: WorkloadConfig;
	readonly controlPlane: ControlPlaneConfig;
	readonly identity: IdentityConfig;
	readonly relay: RelayConfig;
	readonly proxy: ProxyConfig;
	readonly dns: DnsConfig;
	readonly status: StatusConfig;
	readonly capture: CaptureConfig;
	readonly health: HealthConfig;
	readonly address: AddressConfig;
	readonly registration: RegistrationConfig;
	readonly cloud: CloudConfig;
	readonly log: LogConfig;
	/** Seconds between systemd watchdog pings come from the environment; this switches notify off in tests. */
	readonly isNotifyEnabled: boolean;
}

/** Where a value came from, as printed by `config print`. */
export interface Origin {
	readonly kind: 'flag' | 'environment' | 'file' | 'bundle' | 'host' | 'default';
	/** `--namespace`, `ONRAMP_NAMESPACE`, `/etc/onramp/onramp.yaml:12`, `cluster.env:ISTIO_NAMESPACE`, … */
	readonly place: string;
}

/** A file the configuration was read from, as it was then. */
export interface ReadFile {
	readonly path: string;
	/** SHA-256 in hex; null when there was no file, and one that appears would count. */
	readonly sha256: string | null;
}

export interface LoadedConfig {
	readonly config: Config;
	/** What only a start reads; tells whether a running agent has the configuration that is on disk now. */
	readonly files: readonly ReadFile[];
	/** Dotted path (`workload.namespace`) → origin, for every leaf. */
	readonly origins: ReadonlyMap<string, Origin>;
	/** Things that do not stop the agent but that a person should know. */
	readonly warnings: readonly string[];
}

export type {Secret};
