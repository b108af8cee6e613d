import {
	type ChannelCredentials,
	Client,
	connectivityState,
	credentials as grpcCredentials,
	Metadata,
	type ServiceError,
} from '@grpc/grpc-js';
import type {ControlPlaneConfig, Endpoint, TrustAnchor} from '../config/types.ts';
import {AgentError} from '../errors.ts';
import type {BootstrapToken} from '../identity/index.ts';
import {type ConnectContext, explainConnect} from './connect-failures.ts';
import {formatEndpoint, type Lookup, resolveEndpoint} from './resolve.ts';
import {ClientSockets} from './sockets.ts';
import {type ClientCertificate, loadRoots, serverNameOf} from './tls.ts';

/** What one call authenticates with, decided afresh for each. */
export interface Credentials {
	readonly certificate: ClientCertificate | undefined;
	readonly token: BootstrapToken | undefined;
	/** For people: what was shown, or why not. Never a secret. */
	readonly description: string;
}

export interface Connection {
	readonly client: Client;
	readonly endpoint: string;
	readonly metadata: Metadata;
	close(): void;
}

/** Upstream's 1 MiB windows would cost a large push one round trip a megabyte; this is what a push of 5,000 services needs. */
const flowControlWindow = 8 * 1024 * 1024;

export interface ConnectDeps {
	readonly config: ControlPlaneConfig;
	readonly clusterId: string;
	readonly lookup: Lookup;
	/** Roots learned from the control plane, PEM or ''. */
	readonly learnedRoots: () => string;
}

/**
 * Opens one connection to one endpoint and waits until it is up. Of a name with addresses of both families the second is
 * tried when the first cannot be reached.
 * @throws AgentError `control_plane.unreachable`, `.untrusted`, `.unauthenticated` or `.root_unusable`
 */
export async function connect(
	deps: ConnectDeps,
	endpoint: Endpoint,
	anchor: TrustAnchor,
	shown: Credentials,
	headers: Readonly<Record<string, string>>,
	signal: AbortSignal,
): Promise<Connection> {
	const {config, clusterId, lookup, learnedRoots} = deps;
	const [addresses, channelCredentials] = await Promise.all([
		resolveEndpoint(endpoint, config.hosts, lookup),
		endpoint.isPlaintext ? grpcCredentials.createInsecure() : tlsCredentials(anchor, learnedRoots(), shown.certificate),
	]);
	const context = {
		endpoint: formatEndpoint(endpoint),
		serverName: serverNameOf(endpoint, config.serverName),
		roots: anchor.kind === 'system' ? 'the system’s roots' : anchor.path,
		credentials: shown.description,
		isCertificateShown: shown.certificate !== undefined,
	};
	const targets = targetsOf(addresses, endpoint.port);
	const opened = await firstUp(
		targets,
		(target, giveUp) => open(target, channelCredentials, context, config, giveUp),
		signal,
	);
	const metadata = metadataOf(clusterId, headers, endpoint, shown);
	return {client: opened.client, endpoint: context.endpoint, metadata, close: opened.close};
}

/**
 * A family that does not answer may be a second away or a firewall: after this long the other is tried beside it, as
 * RFC 8305 has it (with 250 ms, which a handshake with a busy istiod may take).
 */
const headStartMs = 1000;

interface Opened {
	readonly client: Client;
	close(): void;
}

/** The connection that is up first; the other is given up. Rejects with why the first target failed, or with what one answered. */
function firstUp(
	targets: readonly string[],
	attempt: (target: string, giveUp: AbortSignal) => Promise<Opened>,
	signal: AbortSignal,
): Promise<Opened> {
	const over = new AbortController();
	const giveUp = AbortSignal.any([signal, over.signal]);
	const failures: unknown[] = [];
	let [begun, ended] = [0, 0];
	let headStart: NodeJS.Timeout | undefined;
	const result = new Promise<Opened>((resolve, reject) => {
		const begin = () => {
			clearTimeout(headStart);
			if (signal.aborted) return reject(signal.reason);
			if (begun === targets.length) return;
			const place = begun++;
			headStart = setTimeout(begin, headStartMs);
			attempt(targets[place]!, giveUp).then(
				opened => (over.signal.aborted ? opened.close() : resolve(opened)),
				error => {
					failures[place] = error;
					// What answers says more than what does not.
					if (!(error instanceof AgentError) || error.code !== 'control_plane.unreachable') return reject(error);
					if (++ended === targets.length) return reject(failures[0]);
					return begin();
				},
			);
		};
		begin();
	});
	return result.finally(() => {
		clearTimeout(headStart);
		over.abort(new Error('another address answered'));
	});
}

/** @throws AgentError, or the reason of the signal */
async function open(
	target: string,
	channelCredentials: ChannelCredentials,
	context: ConnectContext,
	config: ControlPlaneConfig,
	signal: AbortSignal,
): Promise<Opened> {
	const sockets = new ClientSockets(channelCredentials);
	const client = new Client(target, sockets.credentials, {
		'grpc.ssl_target_name_override': context.serverName,
		'grpc.default_authority': context.serverName,
		'grpc.max_receive_message_length': -1,
		'grpc.max_send_message_length': -1,
		'grpc.keepalive_time_ms': config.keepaliveMs,
		'grpc.keepalive_timeout_ms': config.keepaliveTimeoutMs,
		'grpc.enable_retries': 0,
		'grpc.service_config_disable_resolution': 1,
		// Each connection has its own credentials; a shared subchannel would keep those of an earlier one.
		'grpc.use_local_subchannel_pool': 1,
		// The agent's path to the control plane is its own; a proxy for the user's HTTP traffic is not meant for it.
		'grpc.enable_http_proxy': 0,
		'grpc-node.flow_control_window': flowControlWindow,
	});
	try {
		await untilUp(client, config.connectTimeoutMs, signal);
		const close = () => {
			client.close();
			sockets.close();
		};
		return {client, close};
	} catch (error) {
		client.close();
		sockets.destroy();
		if (signal.aborted) throw signal.reason;
		throw explainConnect(error, context);
	}
}

async function tlsCredentials(anchor: TrustAnchor, learned: string, certificate: ClientCertificate | undefined) {
	const roots = await loadRoots(anchor, learned);
	if (!certificate) return grpcCredentials.createSsl(roots);
	return grpcCredentials.createSsl(roots, Buffer.from(certificate.keyPem.reveal()), Buffer.from(certificate.chainPem));
}

/** One target a family, as grpc-js has it, in the order of the addresses; it tries those of one target in order. */
function targetsOf(addresses: readonly string[], port: number): readonly string[] {
	const isV6 = (address: string) => address.includes(':');
	const [v4, v6] = [addresses.filter(address => !isV6(address)), addresses.filter(isV6)];
	const targets = [
		v4.length > 0 ? `ipv4:${v4.map(address => `${address}:${port}`).join(',')}` : undefined,
		v6.length > 0 ? `ipv6:${v6.map(address => `[${address}]:${port}`).join(',')}` : undefined,
	];
	return (isV6(addresses[0]!) ? targets.toReversed() : targets).filter(target => target !== undefined);
}

function metadataOf(
	clusterId: string,
	headers: Readonly<Record<string, string>>,
	endpoint: Endpoint,
	{token}: Credentials,
): Metadata {
	const metadata = new Metadata();
	metadata.set('clusterid', clusterId);
	for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
	// A bearer token is worth an identity to whoever reads it, so it never crosses the wire in the clear.
	if (token && !endpoint.isPlaintext) metadata.set('authorization', `Bearer ${token.token.reveal()}`);
	return metadata;
}

/** Resolves when the channel is READY; rejects with gRPC's own reason when it fails, or after the time-out. */
function untilUp(client: Client, timeoutMs: number, signal: AbortSignal): Promise<void> {
	const channel = client.getChannel();
	const deadline = Date.now() + timeoutMs;
	return new Promise((resolve, reject) => {
		const onAbort = () => reject(signal.reason);
		signal.addEventListener('abort', onAbort, {once: true});
		const settle = (act: () => void) => {
			signal.removeEventListener('abort', onAbort);
			act();
		};
		const look = () => {
			if (signal.aborted) return;
			const state = channel.getConnectivityState(true);
			if (state === connectivityState.READY) settle(resolve);
			else if (state === connectivityState.TRANSIENT_FAILURE || state === connectivityState.SHUTDOWN) {
				lastError(client).then(error => settle(() => reject(error)));
			} else {
				channel.watchConnectivityState(state, deadline, error => {
					if (error) settle(() => reject(new Error(`no connection after ${timeoutMs / 1000} s`)));
					else look();
				});
			}
		};
		look();
	});
}

/** grpc-js tells why a connection failed only to a call, so a call is made; it fails at once. */
function lastError(client: Client): Promise<Error> {
	const pass = (value: Buffer) => value;
	return new Promise(resolve => {
		client.makeUnaryRequest(
			'/onramp.Connect/Why',
			pass,
			pass,
			Buffer.alloc(0),
			{deadline: Date.now() + 2000},
			(error: ServiceError | null) => resolve(error ?? new Error('connection lost')),
		);
	});
}
