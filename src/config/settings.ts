import {probes} from './probe.ts';
import * as values from './values.ts';
import {ValueError, type ValueType} from './values.ts';

/** A variable of Istio's that says the same as a setting. */
export interface IstioName {
	readonly name: string;
	/**
	 * Its value as the setting writes it; undefined = says nothing.
	 * @param get - other variables of the same source
	 * @throws ValueError
	 */
	readonly read?: (value: string, get: (name: string) => string | undefined) => string | undefined;
}

/** One thing that can be set. The table drives parsing, `--help` and docs/configuration.md. */
export interface Setting<T = unknown> {
	/** Dotted, in `onramp.yaml`. */
	readonly key: string;
	/** Without the dashes in front. */
	readonly flag: string;
	readonly env: string;
	/** Name of the kind of value: `duration`, `path`, `boolean`, … */
	readonly type: string;
	readonly choices?: readonly string[] | undefined;
	readonly description: string;
	/** As written outside; `{state-dir}` and `{run-dir}` stand for those settings. undefined = none, or found out. */
	readonly default: string | undefined;
	/** Shown in the ordinary `--help`. */
	readonly isCommon: boolean;
	/** False for what says where the file is. */
	readonly isFileAllowed: boolean;
	/** Dotted path in Config. */
	readonly leaf: string;
	readonly value: ValueType<T>;
	/** First one set wins. */
	readonly istio: readonly IstioName[];
	/** Dotted path in ProxyConfig, and how its text becomes the setting's. */
	readonly mesh?: {readonly path: string; readonly read?: (value: string) => string | undefined} | undefined;
}

export type SettingWithDefault<T> = Setting<T> & {readonly default: string};

type Draft = Partial<Pick<Setting, 'flag' | 'env' | 'isCommon' | 'isFileAllowed' | 'leaf' | 'istio' | 'mesh'>> & {
	/** Flag and variable are made of this rather than of the key. */
	readonly name?: string;
};

function setting<T>(
	key: string,
	value: ValueType<T>,
	fallback: string,
	description: string,
	draft?: Draft,
): SettingWithDefault<T>;
function setting<T>(
	key: string,
	value: ValueType<T>,
	fallback: undefined,
	description: string,
	draft?: Draft,
): Setting<T>;
function setting<T>(
	key: string,
	value: ValueType<T>,
	fallback: string | undefined,
	description: string,
	draft: Draft = {},
): Setting<T> {
	const {name = key, ...rest} = draft;
	const flag = name.replaceAll('.', '-');
	return {
		key,
		flag,
		env: `ONRAMP_${flag.replaceAll('-', '_').toUpperCase()}`,
		type: value.name,
		choices: value.choices,
		description,
		default: fallback,
		isCommon: false,
		isFileAllowed: true,
		leaf: key.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase()),
		value,
		istio: [],
		...rest,
	};
}

const isTrue = (value: string): boolean => values.boolean.parse(value, '/');
/** The files of Istio write paths from the working directory `/`. */
const nonEmpty = (value: string): string | undefined => (value === '' ? undefined : value);
const protocol = {name: 'ISTIO_DELTA_XDS', read: (value: string) => (isTrue(value) ? 'delta' : 'sotw')};

/** Any other name makes pilot-agent fail at its start, too. */
function readCaProvider(value: string): string | undefined {
	if (value === '' || value === 'Citadel') return undefined;
	if (value === 'GkeWorkloadCertificate') return 'files';
	throw new ValueError('is a CA that Istio no longer knows');
}

const gkeFile = (file: string): IstioName => ({
	name: 'CA_PROVIDER',
	read: value =>
		value === 'GkeWorkloadCertificate' ? `/var/run/secrets/workload-spiffe-credentials/${file}` : undefined,
});

/** Istio's own name for the socket means Istio's own server, not another one. */
function readSocketFile(value: string): string | undefined {
	if (value === '' || value === 'socket') return undefined;
	if (value.includes('/')) throw new ValueError('is not a bare file name');
	return `/var/run/secrets/workload-spiffe-uds/${value}`;
}

function readEcc(value: string, get: (name: string) => string | undefined): string | undefined {
	if (value === '') return undefined;
	return value === 'ECDSA' ? `ecdsa-${(get('ECC_CURVE') || 'P256').toLowerCase()}` : value;
}

/** Ports and numbers are Istio's own where Istio has them (mesh.go, envoy_bootstrap.json); others give their reason. */
export const table = {
	config: setting(
		'config',
		values.path,
		'/etc/onramp/onramp.yaml',
		'Configuration file; may be absent at its default place',
		{
			isCommon: true,
			isFileAllowed: false,
		},
	),
	bundle: setting(
		'bundle',
		values.path,
		undefined,
		'Directory that "istioctl x workload entry configure" wrote. Default: /etc/onramp/bundle, else the places of the istio-sidecar package',
		{
			isCommon: true,
		},
	),
	stateDir: setting('state-dir', values.path, '/var/lib/onramp', 'Directory for what must outlive a reboot', {
		isCommon: true,
	}),
	runDir: setting('run-dir', values.path, '/run/onramp', 'Directory for sockets and the Envoy bootstrap', {
		isCommon: true,
	}),
	notify: setting('notify', values.boolean, 'true', 'Tell systemd about readiness and answer its watchdog', {
		leaf: 'isNotifyEnabled',
	}),
	logLevel: setting(
		'log.level',
		values.choice('debug', 'info', 'warn', 'error'),
		'info',
		'Least severe log line to write',
		{isCommon: true},
	),
	logFormat: setting('log.format', values.choice('json', 'text'), 'text', 'Form of log lines', {isCommon: true}),

	trustDomain: setting('workload.trust-domain', values.dnsName, 'cluster.local', 'Trust domain of the SPIFFE ID', {
		name: 'trust-domain',
		istio: [{name: 'TRUST_DOMAIN', read: nonEmpty}],
	}),
	// The start script overwrites POD_NAMESPACE by ISTIO_NAMESPACE.
	namespace: setting(
		'workload.namespace',
		values.dnsLabel,
		undefined,
		'Namespace of the workload. Needed, unless the bundle has it',
		{
			name: 'namespace',
			isCommon: true,
			istio: [{name: 'ISTIO_NAMESPACE'}, {name: 'POD_NAMESPACE'}],
		},
	),
	serviceAccount: setting('workload.service-account', values.dnsName, 'default', 'Service account of the workload', {
		name: 'service-account',
		isCommon: true,
		istio: [{name: 'SERVICE_ACCOUNT', read: nonEmpty}],
	}),
	name: setting(
		'workload.name',
		values.nodeName,
		undefined,
		'Name of this machine in the mesh. Default: the short host name',
		{
			name: 'name',
			isCommon: true,
			istio: [{name: 'POD_NAME'}],
		},
	),
	clusterId: setting(
		'workload.cluster-id',
		values.string,
		'Kubernetes',
		'Cluster whose control plane checks our token',
		{
			name: 'cluster-id',
			istio: [{name: 'ISTIO_META_CLUSTER_ID', read: nonEmpty}],
		},
	),
	address: setting(
		'workload.address',
		values.ipAddress,
		undefined,
		'Address that names our WorkloadEntry; it then never changes. Default: found by workload.address-from',
		{
			name: 'address',
			isCommon: true,
			leaf: 'workload.addresses',
			istio: [
				{name: 'ISTIO_SVC_IP', read: nonEmpty},
				{name: 'INSTANCE_IP', read: nonEmpty},
			],
		},
	),
	addressFrom: setting(
		'workload.address-from',
		values.addressRules,
		'route',
		'Where our address is found, in order: route (source of packets to the control plane), interface:NAME, cidr:NETWORK, metadata (as the cloud says)',
		{leaf: 'address.rules'},
	),
	group: setting('workload.group', values.dnsName, undefined, 'WorkloadGroup to be registered in', {
		name: 'group',
		isCommon: true,
		istio: [{name: 'ISTIO_META_AUTO_REGISTER_GROUP', read: nonEmpty}],
	}),
	domain: setting(
		'workload.domain',
		values.dnsName,
		undefined,
		'DNS domain in the node id. Default: NAMESPACE.svc.cluster.local',
	),
	serviceCluster: setting(
		'workload.service-cluster',
		values.nodeName,
		undefined,
		"Envoy's node.cluster. Default: ISTIO_SERVICE, serviceCluster, else made of label, group or workload name",
		{
			istio: [{name: 'ISTIO_SERVICE', read: nonEmpty}],
			// Istio's own default says nothing about this workload.
			mesh: {path: 'serviceCluster', read: value => (value === 'istio-proxy' ? undefined : nonEmpty(value))},
		},
	),
	labels: setting('workload.labels', values.pairs, undefined, 'Labels of the workload, laid over those of the bundle'),
	locality: setting(
		'workload.locality',
		values.anyString,
		undefined,
		'REGION/ZONE/SUBZONE. Default: the locality labels, else what the cloud says',
	),
	cloud: setting(
		'workload.cloud',
		values.choice('auto', 'off', 'aws', 'gce', 'azure'),
		'auto',
		'Whose metadata service is asked for locality, instance and address; auto = that of the cloud the firmware names, else none. workload.locality counts more',
		{leaf: 'cloud.mode'},
	),
	// It answers within milliseconds; a first boot waits no longer for one that does not.
	cloudWait: setting(
		'workload.cloud-wait',
		values.duration(),
		'2s',
		'How long the first start waits for it before it registers without',
		{leaf: 'cloud.waitMs'},
	),
	cloudEndpoint: setting(
		'workload.cloud-endpoint',
		values.metadataEndpoint,
		'http://169.254.169.254',
		'Where it is; for tests. Link-local or loopback addresses only',
		{leaf: 'cloud.endpoint'},
	),
	metadata: setting(
		'workload.metadata',
		values.pairs,
		undefined,
		'Free node metadata, laid over the ISTIO_META_* of the bundle',
	),
	// The Istio release whose Envoy is the generation we run (1.40).
	istioVersion: setting(
		'workload.istio-version',
		values.nodeName,
		'1.31.0',
		'Istio version told to the control plane; must match the generation of Envoy',
		{
			istio: [{name: 'ISTIO_META_ISTIO_VERSION', read: nonEmpty}],
		},
	),
	dnsCapture: setting(
		'workload.dns-capture',
		values.boolean,
		'false',
		'Answer the names of the mesh from the name table',
		{
			leaf: 'workload.isDnsCaptured',
			istio: [{name: 'ISTIO_META_DNS_CAPTURE', read: nonEmpty}],
		},
	),

	registrationMode: setting(
		'registration.mode',
		values.choice('auto', 'direct', 'off'),
		'auto',
		'Who writes our WorkloadEntry: auto = istiod, if there is a WorkloadGroup in workload.group; direct = the agent, through the Kubernetes API; off = nobody',
	),
	registrationEntry: setting(
		'registration.entry',
		values.dnsName,
		undefined,
		'With direct: name of the WorkloadEntry. Default: GROUP-ADDRESS[-NETWORK], as istiod names it',
		{leaf: 'registration.entryName'},
	),
	// Somebody who deletes the entry by hand is noticed within this; a thousand VMs ask 33 times a second then.
	registrationCheck: setting(
		'registration.check',
		values.duration(1000),
		'1m',
		'With direct: look at WorkloadEntry and WorkloadGroup about this often, and put the entry right',
		{leaf: 'registration.checkMs'},
	),
	kubeconfig: setting(
		'registration.kubernetes.kubeconfig',
		values.path,
		undefined,
		'With direct: how the Kubernetes API is reached; its current context counts, and programs it names are not run',
		{leaf: 'registration.kubernetes'},
	),
	kubernetesServer: setting(
		'registration.kubernetes.server',
		values.httpsUrl,
		undefined,
		'With direct, instead of a kubeconfig: https://HOST[:PORT] of the Kubernetes API',
		{leaf: 'registration.kubernetes.server'},
	),
	kubernetesCa: setting(
		'registration.kubernetes.ca',
		values.trustAnchor,
		undefined,
		'Root certificates of that server: a PEM file, or SYSTEM. Needed with it',
		{leaf: 'registration.kubernetes.trustAnchor'},
	),
	kubernetesToken: setting(
		'registration.kubernetes.token',
		values.path,
		undefined,
		'File with the token for that server; read each time. Needed with it',
		{leaf: 'registration.kubernetes.tokenPath'},
	),

	endpoints: setting(
		'control-plane.endpoints',
		values.endpoints,
		'istiod.istio-system.svc:15012',
		'Addresses of the control plane, in order of preference',
		{
			name: 'control-plane',
			isCommon: true,
			istio: [
				{name: 'PILOT_ADDRESS', read: nonEmpty},
				{
					name: 'ISTIO_PILOT_PORT',
					read: (value, get) =>
						nonEmpty(value) && `istiod.${get('ISTIO_SYSTEM_NAMESPACE') || 'istio-system'}.svc:${value}`,
				},
			],
			mesh: {path: 'discoveryAddress', read: nonEmpty},
		},
	),
	caEndpoints: setting(
		'control-plane.ca-endpoints',
		values.endpoints,
		undefined,
		'Addresses of the CA. Default: those of the control plane',
		{
			name: 'ca',
			istio: [{name: 'CA_ADDR', read: nonEmpty}],
		},
	),
	serverName: setting(
		'control-plane.server-name',
		values.dnsName,
		undefined,
		"Name to verify in the control plane's certificate instead of its host name",
		{
			name: 'server-name',
			istio: [{name: 'ISTIOD_SAN', read: nonEmpty}],
		},
	),
	rootCert: setting(
		'control-plane.root-cert',
		values.trustAnchor,
		undefined,
		'Root certificates of the control plane: a PEM file, or SYSTEM. Default: root-cert.pem of the bundle',
		{
			name: 'root-cert',
			leaf: 'controlPlane.trustAnchor',
			istio: [
				{name: 'XDS_ROOT_CA', read: nonEmpty},
				{
					name: 'ISTIO_META_TLS_CLIENT_ROOT_CERT',
					read: (value, get) => (isTrue(get('FILE_MOUNTED_CERTS') || 'false') ? nonEmpty(value) : undefined),
				},
			],
		},
	),
	caRootCert: setting(
		'control-plane.ca-root-cert',
		values.trustAnchor,
		undefined,
		'The same for the CA. Default: control-plane.root-cert',
		{
			name: 'ca-root-cert',
			leaf: 'controlPlane.caTrustAnchor',
			istio: [{name: 'CA_ROOT_CA', read: nonEmpty}],
		},
	),
	hosts: setting(
		'control-plane.hosts',
		values.hosts,
		undefined,
		'Addresses of host names, looked at before DNS; laid over the hosts file of the bundle',
	),
	xdsHeaders: setting('control-plane.xds-headers', values.headers, undefined, 'Further headers of the ADS stream'),
	caHeaders: setting('control-plane.ca-headers', values.headers, undefined, 'Further headers of calls to the CA'),
	tokenPath: setting(
		'control-plane.token-path',
		values.path,
		undefined,
		'File with the bootstrap token. Default: istio-token of the bundle, else /var/run/secrets/tokens/istio-token',
		{
			name: 'token-path',
			isCommon: true,
		},
	),
	tokenAudience: setting(
		'control-plane.token-audience',
		values.string,
		'istio-ca',
		'Audience that the control plane asks for',
		{
			istio: [{name: 'TOKEN_AUDIENCES', read: value => nonEmpty(value.split(',')[0]!.trim())}],
		},
	),
	connectTimeout: setting('control-plane.connect-timeout', values.duration(1), '10s', 'Longest wait for a connection', {
		leaf: 'controlPlane.connectTimeoutMs',
	}),
	keepalive: setting(
		'control-plane.keepalive',
		values.duration(1),
		'30s',
		'Time between keepalive pings; istiod bears one each 15s',
		{
			leaf: 'controlPlane.keepaliveMs',
			istio: [{name: 'GRPC_KEEPALIVE_INTERVAL', read: nonEmpty}],
		},
	),
	keepaliveTimeout: setting(
		'control-plane.keepalive-timeout',
		values.duration(1),
		'10s',
		'Longest wait for the answer to a ping',
		{
			leaf: 'controlPlane.keepaliveTimeoutMs',
			istio: [{name: 'GRPC_KEEPALIVE_TIMEOUT', read: nonEmpty}],
		},
	),
	backoffBase: setting(
		'control-plane.backoff-base',
		values.duration(1),
		'1s',
		'Bound of the first wait before reconnecting',
		{
			leaf: 'controlPlane.backoffBaseMs',
		},
	),
	// 60s is also the cap of pilot-agent's outer loop.
	backoffMax: setting(
		'control-plane.backoff-max',
		values.duration(1),
		'60s',
		'Bound of every wait before reconnecting',
		{
			leaf: 'controlPlane.backoffMaxMs',
		},
	),

	identitySource: setting(
		'identity.source',
		values.choice('control-plane', 'files', 'sds'),
		'control-plane',
		'Where the workload certificate comes from',
		{
			leaf: 'identity.source.kind',
			istio: [
				{name: 'FILE_MOUNTED_CERTS', read: value => (value !== '' && isTrue(value) ? 'files' : undefined)},
				{name: 'CA_PROVIDER', read: readCaProvider},
				{name: 'WORKLOAD_IDENTITY_SOCKET_FILE', read: value => readSocketFile(value) && 'sds'},
			],
		},
	),
	tokenProgram: setting(
		'identity.token-program',
		values.command,
		'',
		'Program that prints the bootstrap token, and its arguments; run as the user of the agent, without a shell, instead of reading a file',
		{leaf: 'controlPlane.tokenProgram'},
	),
	identityCert: setting('identity.cert', values.path, undefined, 'Certificate chain, with source "files"', {
		leaf: 'identity.source.certPath',
		istio: [{name: 'ISTIO_META_TLS_CLIENT_CERT_CHAIN', read: nonEmpty}, gkeFile('certificates.pem')],
	}),
	identityKey: setting('identity.key', values.path, undefined, 'Private key, with source "files"', {
		leaf: 'identity.source.keyPath',
		istio: [{name: 'ISTIO_META_TLS_CLIENT_KEY', read: nonEmpty}, gkeFile('private_key.pem')],
	}),
	identityRoot: setting('identity.root', values.path, undefined, 'Root certificates, with source "files"', {
		leaf: 'identity.source.rootPath',
		istio: [{name: 'ISTIO_META_TLS_CLIENT_ROOT_CERT', read: nonEmpty}, gkeFile('ca_certificates.pem')],
	}),
	identitySocket: setting(
		'identity.socket',
		values.socketPath,
		undefined,
		'Socket of a SPIRE agent or another SDS server, with source "sds"',
		{
			leaf: 'identity.source.socketPath',
			istio: [{name: 'WORKLOAD_IDENTITY_SOCKET_FILE', read: readSocketFile}],
		},
	),
	keyType: setting(
		'identity.key-type',
		values.choice('ecdsa-p256', 'ecdsa-p384', 'rsa-2048', 'rsa-3072', 'rsa-4096'),
		'ecdsa-p256',
		'Kind of private key',
		{
			istio: [
				{name: 'ECC_SIGNATURE_ALGORITHM', read: readEcc},
				{name: 'WORKLOAD_RSA_KEY_SIZE', read: value => nonEmpty(value) && `rsa-${value}`},
			],
		},
	),
	certificateLifetime: setting(
		'identity.certificate-lifetime',
		values.duration(1000),
		'24h',
		'Life of the certificate to ask for',
		{
			leaf: 'identity.certificateLifetimeMs',
			istio: [{name: 'SECRET_TTL', read: nonEmpty}],
		},
	),
	// Istio states the share that is left, we the share that is over.
	rotateAtShare: setting(
		'identity.rotate-at-share',
		values.share(0.05, 0.95),
		'0.5',
		'Share of the life after which to rotate',
		{
			istio: [
				{
					name: 'SECRET_GRACE_PERIOD_RATIO',
					read: value => nonEmpty(value) && String(Number((1 - Number(value)).toFixed(6))),
				},
			],
		},
	),
	// Ten times Istio's: a fleet booted together must not reach the CA together.
	rotateJitter: setting(
		'identity.rotate-jitter',
		values.share(0, 0.5),
		'0.1',
		'Share of the life by which rotation varies',
		{
			istio: [{name: 'SECRET_GRACE_PERIOD_RATIO_JITTER', read: nonEmpty}],
		},
	),
	rideOut: setting(
		'identity.ride-out',
		values.duration(),
		'0s',
		'Rotate so early that this much life is always left; 0s = off',
		{
			leaf: 'identity.rideOutMs',
		},
	),
	retryMax: setting('identity.retry-max', values.duration(1), '60s', 'Bound of the waits between failed rotations', {
		leaf: 'identity.retryMaxMs',
	}),
	trialDelay: setting(
		'identity.trial-delay',
		values.duration(),
		'60s',
		'Try within so long of joining whether the certificate alone is renewed; long = not before the first rotation',
		{
			leaf: 'identity.trialDelayMs',
		},
	),
	identityStateDir: setting(
		'identity.state-dir',
		values.path,
		'{state-dir}/identity',
		'Directory of keys and certificates',
	),
	outputDir: setting(
		'identity.output-dir',
		values.path,
		undefined,
		'Also write key.pem, cert-chain.pem and root-cert.pem here, for other programs',
		{
			istio: [{name: 'OUTPUT_CERTS', read: nonEmpty}],
		},
	),
	outputKeyMode: setting('identity.output-key-mode', values.fileMode, '0600', 'File mode of that key.pem'),
	certSigner: setting('identity.cert-signer', values.anyString, '', 'CertSigner of the certificate request', {
		istio: [{name: 'ISTIO_META_CERT_SIGNER', read: nonEmpty}],
	}),

	relayProtocol: setting(
		'relay.protocol',
		values.choice('delta', 'sotw'),
		'delta',
		'Form of ADS towards the control plane',
		{istio: [protocol]},
	),
	proxyConfigWanted: setting(
		'relay.proxy-config',
		values.boolean,
		'false',
		'Ask for ProxyConfig over ADS (changes of the trust bundle)',
		{
			leaf: 'relay.isProxyConfigWanted',
			istio: [{name: 'PROXY_CONFIG_XDS_AGENT', read: nonEmpty}],
		},
	),
	removeUnknownExtensions: setting(
		'relay.remove-unknown-extensions',
		values.choice('auto', 'never'),
		'auto',
		'Take out of the configuration what this Envoy lacks',
	),
	relaySnapshot: setting(
		'relay.snapshot',
		values.boolean,
		'true',
		'Keep the configuration under state-dir, for a start while the control plane is away',
		{leaf: 'relay.snapshotDir'},
	),
	relaySocket: setting('relay.socket', values.socketPath, '{run-dir}/xds.sock', 'Socket for Envoy', {
		leaf: 'relay.socketPath',
	}),

	proxyMode: setting(
		'proxy.mode',
		values.choice('spawn', 'unit', 'external', 'off'),
		'spawn',
		'Who runs Envoy: the agent, the units onramp-envoy@, another supervisor, nobody',
		{
			istio: [{name: 'DISABLE_ENVOY', read: value => (value !== '' && isTrue(value) ? 'off' : undefined)}],
		},
	),
	binary: setting(
		'proxy.binary',
		values.path,
		undefined,
		'Envoy. Default: /usr/lib/onramp/envoy, else /usr/local/bin/envoy',
		{
			flag: 'envoy',
			isCommon: true,
			leaf: 'proxy.binaryPath',
			mesh: {path: 'binaryPath', read: nonEmpty},
		},
	),
	bootstrap: setting(
		'proxy.bootstrap',
		values.path,
		'{run-dir}/envoy/bootstrap.json',
		"Where Envoy's bootstrap is written",
		{leaf: 'proxy.bootstrapPath'},
	),
	adminSocket: setting(
		'proxy.admin-socket',
		values.socketPath,
		'{run-dir}/admin.sock',
		"Socket of Envoy's admin interface",
		{leaf: 'proxy.adminSocketPath'},
	),
	envoyLog: setting('proxy.log', values.path, '{state-dir}/log/envoy.log', "Envoy's log file", {leaf: 'proxy.logPath'}),
	record: setting(
		'proxy.record',
		values.path,
		'{run-dir}/envoy/record.json',
		'Record of the running Envoy, for the next agent',
		{leaf: 'proxy.recordPath'},
	),
	// Two files of this size are kept at most; small beside the 10 GB disks of the smallest VMs.
	logMax: setting('proxy.log-max', values.bytes, '64MiB', "Size at which Envoy's log is reopened", {
		leaf: 'proxy.logMaxBytes',
	}),
	concurrency: setting(
		'proxy.concurrency',
		values.integer(0, 1024),
		'2',
		'Worker threads of Envoy; 0 = one for each CPU',
		{
			istio: [{name: 'ISTIO_CPU_LIMIT', read: value => (value === '0' ? undefined : nonEmpty(value))}],
			mesh: {path: 'concurrency'},
		},
	),
	proxyLogLevel: setting(
		'proxy.log-level',
		values.choice('trace', 'debug', 'info', 'warning', 'error', 'critical', 'off'),
		'warning',
		"Envoy's log level",
	),
	componentLogLevel: setting(
		'proxy.component-log-level',
		values.anyString,
		'',
		"Envoy's log levels by component: rbac:debug,jwt:debug",
	),
	adsProtocol: setting(
		'proxy.ads-protocol',
		values.choice('delta', 'sotw'),
		'delta',
		'Form of ADS between Envoy and the agent',
		{istio: [protocol]},
	),
	readinessPort: setting('proxy.readiness-port', values.portOrOff, '15021', "Envoy's readiness listener", {
		istio: [{name: 'ENVOY_STATUS_PORT', read: nonEmpty}],
	}),
	metricsPort: setting('proxy.metrics-port', values.portOrOff, '15090', "Envoy's metrics listener", {
		istio: [{name: 'ENVOY_PROMETHEUS_PORT', read: nonEmpty}],
	}),
	listenAddress: setting('proxy.listen-address', values.ipAddress, '0.0.0.0', 'Address of those two listeners'),
	drain: setting('proxy.drain', values.duration(), '45s', "Time over which Envoy's drain closes connections", {
		leaf: 'proxy.drainMs',
		mesh: {path: 'drainDuration'},
	}),
	// istiod keeps the entry of a VM that has left for 10 s, and the word has to spread (decision 0008).
	terminationDrain: setting(
		'proxy.termination-drain',
		values.duration(),
		'15s',
		'How long a stopping VM goes on serving, at least, as its callers hear of the stop late',
		{
			leaf: 'proxy.terminationDrainMs',
			mesh: {path: 'terminationDrainDuration'},
		},
	),
	// With the few seconds that ending Envoy may take, well below the 45 s a unit should give the agent to stop.
	drainCeiling: setting('proxy.drain-ceiling', values.duration(), '25s', 'Longest wait for requests in flight', {
		leaf: 'proxy.drainCeilingMs',
	}),
	replaceTimeout: setting(
		'proxy.replace-timeout',
		values.duration(1000),
		'1m',
		'How long an Envoy that replaces another may take to serve as much; then the old one stays',
		{leaf: 'proxy.replaceTimeoutMs'},
	),
	replaceCeiling: setting(
		'proxy.replace-ceiling',
		values.duration(),
		'10m',
		'How long connections may go on with an Envoy that was replaced',
		{leaf: 'proxy.replaceCeilingMs'},
	),
	crashBudget: setting(
		'proxy.crash-budget',
		values.integer(0, 1000),
		'5',
		'Crashes of Envoy within the window that are borne',
	),
	crashWindow: setting('proxy.crash-window', values.duration(1000), '5m', 'That window', {leaf: 'proxy.crashWindowMs'}),
	// A captured host has no network until Envoy is back, so the first wait is short.
	restartBase: setting(
		'proxy.restart-backoff-base',
		values.duration(1),
		'100ms',
		'Bound of the first wait before Envoy is started again',
		{
			leaf: 'proxy.restartBackoffBaseMs',
		},
	),
	restartMax: setting('proxy.restart-backoff-max', values.duration(1), '10s', 'Bound of every such wait', {
		leaf: 'proxy.restartBackoffMaxMs',
	}),
	maxDownstreamConnections: setting(
		'proxy.max-downstream-connections',
		values.integer(1, 2 ** 31 - 1),
		'2147483647',
		'Connections that Envoy takes at most',
		{
			istio: [{name: 'ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS', read: nonEmpty}],
		},
	),
	statsPrefixes: setting('proxy.stats-prefixes', values.strings, '', 'Further statistics to keep, by prefix', {
		mesh: {path: 'proxyStatsMatcher.inclusionPrefixes'},
	}),
	statsSuffixes: setting('proxy.stats-suffixes', values.strings, '', 'The same by suffix', {
		mesh: {path: 'proxyStatsMatcher.inclusionSuffixes'},
	}),
	statsRegexes: setting('proxy.stats-regexes', values.strings, '', 'The same by regular expression', {
		mesh: {path: 'proxyStatsMatcher.inclusionRegexps'},
	}),
	runtimeValues: setting(
		'proxy.runtime-values',
		values.pairs,
		undefined,
		"Runtime keys of Envoy, laid over those of the mesh; '' deletes",
	),
	extraArguments: setting('proxy.extra-arguments', values.strings, '', 'Further command line arguments for Envoy'),
	onStop: setting('proxy.on-stop', values.choice('stop', 'leave'), 'stop', 'Whether a stopping agent ends Envoy'),

	dnsMode: setting(
		'dns.mode',
		values.choice('auto', 'capture', 'resolved', 'off'),
		'auto',
		'How names of the mesh are answered: capture = rules lead port 53 to the agent, resolved = systemd-resolved asks it, auto = capture if workload.dns-capture says so',
	),
	dnsAddresses: setting(
		'dns.addresses',
		values.loopbacks,
		'127.0.0.1,::1',
		'Loopback addresses of the DNS server; one this machine does not have is left out',
	),
	// Istio's own.
	dnsPort: setting('dns.port', values.port, '15053', 'Port of the DNS server, UDP and TCP', {
		istio: [{name: 'DNS_PROXY_ADDR', read: value => /:(\d+)$/.exec(value)?.[1]}],
	}),
	dnsUpstreams: setting(
		'dns.upstreams',
		values.nameServers,
		'',
		'Servers to ask for all other names, ADDRESS or ADDRESS:PORT, in order. Default: those of dns.resolv-conf, followed live',
	),
	dnsResolvConf: setting(
		'dns.resolv-conf',
		values.path,
		'/etc/resolv.conf',
		'Servers and search domains of this machine',
		{
			leaf: 'dns.resolvConfPath',
		},
	),
	dnsResolvedConf: setting(
		'dns.resolved-conf',
		values.path,
		'/run/systemd/resolve/resolv.conf',
		'Servers that systemd-resolved asks itself, used when its stub leads back to the agent or is silent',
		{leaf: 'dns.resolvedConfPath'},
	),
	// Below the five seconds after which the C library asks again.
	dnsTimeout: setting(
		'dns.timeout',
		values.duration(100),
		'4s',
		'Longest wait for other servers, all tries of a question',
		{
			leaf: 'dns.timeoutMs',
			istio: [{name: 'DNS_FORWARD_TIMEOUT', read: nonEmpty}],
		},
	),
	// Istio's own, and Kubernetes'.
	dnsTtl: setting('dns.ttl', values.duration(), '30s', 'How long answers from the name table may be remembered', {
		leaf: 'dns.ttlSeconds',
	}),
	dnsMeshDomains: setting(
		'dns.mesh-domains',
		values.domains,
		undefined,
		'Domains whose names are never asked for elsewhere, known or not. Default: workload.domain without the namespace; "none" for no domain',
	),
	dnsMostInFlight: setting(
		'dns.max-in-flight',
		values.integer(1, 100_000),
		'2000',
		'Questions asked of other servers at one time; past this the answer is SERVFAIL',
		{leaf: 'dns.mostInFlight'},
	),
	dnsLink: setting(
		'dns.link',
		values.string,
		'onramp-dns',
		"Network link whose domains systemd-resolved is given, with dns.mode 'resolved'",
	),

	statusAddress: setting('status.address', values.ipAddress, '0.0.0.0', 'Address of health and metrics'),
	statusPort: setting('status.port', values.portOrOff, '15020', 'Port of health and metrics; 0 = none', {
		mesh: {path: 'statusPort'},
	}),
	controlSocket: setting(
		'status.control-socket',
		values.socketPath,
		'{run-dir}/control.sock',
		'Socket for the command line',
		{
			name: 'control-socket',
			leaf: 'status.controlSocketPath',
		},
	),
	appMetrics: setting(
		'status.app-metrics',
		values.scrapeTargets,
		'',
		'Metrics of the application to merge, each PORT/PATH. Default: ISTIO_PROMETHEUS_ANNOTATIONS',
	),
	envoyMerged: setting('status.merge-envoy', values.boolean, 'true', "Merge Envoy's metrics", {
		leaf: 'status.isEnvoyMerged',
		istio: [{name: 'PILOT_AGENT_MERGE_ENVOY_STATS', read: nonEmpty}],
	}),

	captureEnabled: setting('capture.enabled', values.boolean, 'true', 'Whether the rules are ours to make', {
		leaf: 'capture.isEnabled',
		istio: [{name: 'ISTIO_CUSTOM_IP_TABLES', read: value => (value === '' ? undefined : String(!isTrue(value)))}],
	}),
	captureByAgent: setting(
		'capture.by-agent',
		values.boolean,
		'false',
		'The agent itself captures traffic while it runs; needs CAP_NET_ADMIN. Otherwise "onramp capture", by hand or as a unit',
		{name: 'capture', isCommon: true, leaf: 'capture.isByAgent'},
	),
	captureBackend: setting(
		'capture.backend',
		values.choice('auto', 'nft', 'iptables-nft', 'iptables-legacy'),
		'auto',
		'What to load rules with. auto: what this host has, and has rules in',
		{
			istio: [
				{name: 'NATIVE_NFTABLES', read: value => (value !== '' && isTrue(value) ? 'nft' : undefined)},
				{name: 'FORCE_IPTABLES_BINARY', read: value => nonEmpty(value) && `iptables-${value}`},
			],
		},
	),
	interception: setting(
		'capture.interception',
		values.choice('redirect', 'tproxy'),
		'redirect',
		'tproxy keeps the source address of inbound connections; Envoy then needs CAP_NET_ADMIN',
		{
			istio: [
				{
					name: 'ISTIO_INBOUND_INTERCEPTION_MODE',
					// Istio takes any other text as REDIRECT.
					read: value => nonEmpty(value) && (value === 'TPROXY' ? 'tproxy' : 'redirect'),
				},
			],
		},
	),
	captureUsers: setting(
		'capture.users',
		values.someOwners,
		'onramp',
		'Users of agent and Envoy, whose connections are not captured, nor those of their groups',
		{
			istio: [
				{name: 'PROXY_UID', read: nonEmpty},
				{name: 'ENVOY_USER', read: nonEmpty},
			],
		},
	),
	captureGroups: setting('capture.groups', values.owners, '', 'Further groups whose connections are not captured', {
		istio: [{name: 'PROXY_GID', read: nonEmpty}],
	}),
	captureOutboundPort: setting('capture.outbound-port', values.port, '15001', "Envoy's outbound listener"),
	captureInboundPort: setting('capture.inbound-port', values.port, '15006', "Envoy's inbound listener", {
		istio: [{name: 'INBOUND_CAPTURE_PORT', read: nonEmpty}],
	}),
	captureTunnelPort: setting('capture.tunnel-port', values.port, '15008', 'Tunnel port (HBONE), never captured', {
		istio: [{name: 'INBOUND_TUNNEL_PORT', read: nonEmpty}],
	}),
	inboundPorts: setting(
		'capture.inbound-ports',
		values.portsOrAll,
		'*',
		'Ports whose inbound connections are captured; SSH and the ports of agent and Envoy never are',
		{isCommon: true, istio: [{name: 'ISTIO_INBOUND_PORTS'}]},
	),
	inboundExcludePorts: setting(
		'capture.inbound-exclude-ports',
		values.ports,
		'',
		'Ports to leave out while inbound-ports is *',
		{istio: [{name: 'ISTIO_LOCAL_EXCLUDE_PORTS'}]},
	),
	outboundCidrs: setting(
		'capture.outbound-cidrs',
		values.cidrsOrAll,
		'*',
		'Networks to which outbound connections are captured, IPv4 and IPv6 mixed',
		{isCommon: true, istio: [{name: 'ISTIO_SERVICE_CIDR'}]},
	),
	outboundExcludeCidrs: setting(
		'capture.outbound-exclude-cidrs',
		values.cidrs,
		'',
		"Networks to leave out; the cloud's metadata server always is",
		{isCommon: true, istio: [{name: 'ISTIO_SERVICE_EXCLUDE_CIDR'}]},
	),
	outboundPorts: setting(
		'capture.outbound-ports',
		values.ports,
		'',
		'Ports to which outbound connections are captured, whatever the network',
		{istio: [{name: 'ISTIO_OUTBOUND_PORTS'}]},
	),
	outboundExcludePorts: setting('capture.outbound-exclude-ports', values.ports, '', 'Ports to leave out', {
		istio: [{name: 'ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE'}],
	}),
	captureExcludeInterfaces: setting(
		'capture.exclude-interfaces',
		values.interfaces,
		'',
		'Interfaces whose traffic is not captured in either direction',
		{istio: [{name: 'ISTIO_EXCLUDE_INTERFACES'}]},
	),
	captureOutboundInterfaces: setting(
		'capture.outbound-interfaces',
		values.interfaces,
		'',
		'Interfaces to guests whose outgoing connections are captured as if they were those of this machine',
		{istio: [{name: 'KUBE_VIRT_INTERFACES'}]},
	),
	captureBridges: setting(
		'capture.bridges',
		values.choice('ignore', 'outbound'),
		'ignore',
		'What becomes of connections from containers and virtual machines on this host (docker0, br-*, virbr*, …)',
	),
	outboundUsers: setting('capture.outbound-users', values.ownersOrAll, '*', 'Capture only connections of these users'),
	outboundExcludeUsers: setting('capture.outbound-exclude-users', values.owners, '', 'Users to leave out'),
	outboundGroups: setting(
		'capture.outbound-groups',
		values.ownersOrAll,
		'*',
		'Capture only connections of these groups',
		{istio: [{name: 'ISTIO_OUTBOUND_OWNER_GROUPS'}]},
	),
	outboundExcludeGroups: setting('capture.outbound-exclude-groups', values.owners, '', 'Groups to leave out', {
		istio: [{name: 'ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE'}],
	}),
	captureUnits: setting(
		'capture.units',
		values.units,
		'',
		'Capture only connections of these systemd units, or control groups by path',
	),
	captureExcludeUnits: setting('capture.exclude-units', values.units, '', 'Units to leave out'),
	captureLoopback: setting(
		'capture.loopback-cidr',
		values.loopbackCidr,
		'127.0.0.1/32',
		'IPv4 destinations that are meant as loopback',
		{istio: [{name: 'ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR', read: nonEmpty}]},
	),
	captureDns: setting(
		'capture.dns',
		values.choice('auto', 'servers', 'all', 'off'),
		'auto',
		'Questions to the servers of resolv.conf, to any server, or none. auto: servers, if workload.dns-capture is on',
		{istio: [{name: 'CAPTURE_ALL_DNS', read: value => (value !== '' && isTrue(value) ? 'all' : undefined)}]},
	),
	captureDnsPort: setting(
		'capture.dns-port',
		values.port,
		undefined,
		'Where the agent answers them. Default: dns.port',
	),
	captureIpv6: setting(
		'capture.ipv6',
		values.choice('capture', 'reject', 'ignore'),
		'capture',
		'reject: no outgoing IPv6, also where a kernel cannot redirect it; ignore: it goes past Envoy',
	),
	captureDropInvalid: setting(
		'capture.drop-invalid',
		values.boolean,
		'false',
		'Drop incoming packets that belong to no connection',
		{
			istio: [
				{name: 'DROP_INVALID', read: nonEmpty},
				{name: 'INVALID_DROP', read: nonEmpty},
			],
		},
	),
	tproxyMark: setting(
		'capture.tproxy-mark',
		values.integer(1, 2 ** 31),
		'1337',
		'Mark of captured packets; the next one is used, too',
		{
			istio: [{name: 'ISTIO_INBOUND_TPROXY_MARK', read: nonEmpty}],
		},
	),
	tproxyTable: setting(
		'capture.tproxy-route-table',
		values.integer(1, 252),
		'133',
		'Routing table that delivers them',
		{
			leaf: 'capture.tproxyTable',
			istio: [{name: 'ISTIO_INBOUND_TPROXY_ROUTE_TABLE', read: nonEmpty}],
		},
	),
	onAgentDown: setting(
		'capture.on-agent-down',
		values.choice('hold', 'bypass', 'block'),
		'hold',
		'Without Envoy: connections are refused until it is back; go past it; or are refused even after a stop',
		{isCommon: true},
	),
	onDrift: setting(
		'capture.on-drift',
		values.choice('repair', 'report'),
		'repair',
		'When somebody else has changed the rules',
	),
	existingConnections: setting(
		'capture.existing-connections',
		values.choice('leave', 'end'),
		'leave',
		'Connections from before the rules, which go past Envoy until they end',
	),
	captureProbes: setting(
		'capture.probes',
		values.probes,
		'',
		'What must answer after a change of rules as it did before: tcp://HOST:PORT, dns:NAME',
	),
	captureWait: setting(
		'capture.wait',
		values.duration(),
		'30s',
		'How long Envoy and DNS may take to answer before rules are loaded',
		{leaf: 'capture.waitMs'},
	),
	captureStateDir: setting(
		'capture.state-dir',
		values.path,
		'{run-dir}-capture',
		'What must be known until the next change of rules; with capture.by-agent {run-dir}/capture by default',
	),

	healthMode: setting(
		'health.mode',
		values.choice('auto', 'always', 'manual', 'off'),
		'auto',
		'Report health to the control plane: if there is a probe; always; once "onramp ready" was said; or never',
	),
	healthProbes: setting(
		'health.probes',
		probes,
		undefined,
		'Probes of the application by name, each as the probe of a WorkloadGroup is written. Default: that of the bundle',
	),
	healthDefaultHost: setting(
		'health.default-host',
		values.choice('address', 'localhost'),
		'address',
		'Host of probes that name none: the address of the WorkloadEntry, or localhost',
		{
			istio: [
				{
					name: 'REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION',
					read: value => nonEmpty(value) && (isTrue(value) ? 'localhost' : 'address'),
				},
			],
		},
	),
	healthReassert: setting(
		'health.reassert',
		values.duration(1000),
		'10m',
		'Repeat the report about this often, should the control plane have lost it',
		{leaf: 'health.reassertMs'},
	),
};

/** Every setting, in the order of help and docs. */
export const settings: readonly Setting[] = Object.values(table);
