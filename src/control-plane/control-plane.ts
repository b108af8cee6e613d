import type {ClientDuplexStream} from '@grpc/grpc-js';
import type {ControlPlaneConfig, Endpoint, TrustAnchor, WorkloadConfig} from '../config/types.ts';
import {AgentError, reasonOf} from '../errors.ts';
import type {RequestCertificate, TokenSource} from '../identity/index.ts';
import type {Clock, Metrics} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {createCertificate} from './ca.ts';
import {mayBeCertificateRefusal} from './connect-failures.ts';
import {type Connection, type Credentials, connect} from './connection.ts';
import {explainRefusal, type RefusalContext} from './refusals.ts';
import {formatEndpoint, type Lookup, systemLookup} from './resolve.ts';
import {type ClientCertificate, isPresentable} from './tls.ts';

/** An open ADS stream: encoded requests in, encoded responses out. */
export interface AdsStream {
	readonly call: ClientDuplexStream<Buffer, Buffer>;
	readonly endpoint: string;
	/**
	 * The end of the stream as a typed error.
	 * @param hasAnswered - whether anything came; who gave nothing is asked last the next time
	 */
	explain(error: unknown, hasAnswered: boolean): AgentError;
	close(): void;
}

export type AdsProtocol = 'delta' | 'sotw';

export interface ControlPlane {
	readonly requestCertificate: RequestCertificate;
	/** Connects to the first endpoint that answers and opens the stream. @throws AgentError */
	openAdsStream(protocol: AdsProtocol, signal: AbortSignal): Promise<AdsStream>;
}

export interface ControlPlaneDeps {
	readonly config: ControlPlaneConfig;
	readonly workload: Pick<WorkloadConfig, 'namespace' | 'serviceAccount' | 'clusterId' | 'group'>;
	/** The pair to show, asked afresh for each connection; undefined while there is none. */
	readonly clientCertificate: () => ClientCertificate | undefined;
	readonly token: TokenSource;
	/** Roots it has told us of, PEM or ''; they outlive the certificate they came with. */
	readonly learnedRoots?: () => string;
	readonly clock: Clock;
	readonly log: Logger;
	readonly metrics: Metrics;
	readonly lookup?: Lookup;
}

const adsMethods: Record<AdsProtocol, string> = {
	delta: '/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources',
	sotw: '/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources',
};

const asIs = (value: Buffer): Buffer => value;

/** Its code is that of the token's fault: whoever keeps the certificate tells that already. */
function withoutCredentials(problem: AgentError): AgentError {
	return new AgentError(problem.code, `there is no certificate to show the control plane, and ${problem.message}`, {
		cause: problem,
		...(problem.hint === undefined ? {} : {hint: problem.hint}),
	});
}

export function createControlPlane({
	config,
	workload,
	clientCertificate,
	token: tokenSource,
	learnedRoots = () => '',
	clock,
	log,
	metrics,
	lookup = systemLookup,
}: ControlPlaneDeps): ControlPlane {
	const failures = metrics.counter(
		'control_plane_connection_failures_total',
		'Connections to the control plane that failed, by error code.',
	);
	const connectDeps = {
		config,
		clusterId: workload.clusterId,
		lookup,
		learnedRoots,
	};
	// Set after a failure that may mean "I do not know your certificate"; the next attempt then relies on the token.
	let isCertificateWithheld = false;
	let toldToken = '';
	// Opening a stream succeeds also where a gateway or an overloaded istiod refuses it a moment later, or says nothing.
	let passedOver: string | undefined;

	/** The token, or why there is none; a token that cannot help is not sent. */
	async function readToken(): Promise<{token?: Credentials['token']; problem?: unknown; description: string}> {
		try {
			const token = await tokenSource.read();
			const expiry = token.expiresAt ? `, expires ${token.expiresAt.toISOString()}` : '';
			const doubts = token.problems.map(problem => `, but: ${problem.message}`).join('');
			return {token, description: `token for ${token.subject ?? 'an unnamed subject'}${expiry}${doubts}`};
		} catch (error) {
			const description = error instanceof AgentError ? error.message : reasonOf(error);
			if (toldToken !== description) log.debug({reason: description}, 'no usable bootstrap token');
			toldToken = description;
			return {problem: error, description: `no token: ${description}`};
		}
	}

	async function chooseCredentials(auth: 'any' | 'certificate-only', {isPlaintext}: Endpoint): Promise<Credentials> {
		const held = clientCertificate();
		const isUsable = held !== undefined && isPresentable(held, workload, clock.now());
		const {token, problem, description} =
			auth === 'any' ? await readToken() : {description: 'token held back on purpose'};
		// Nothing to show is nothing to ask with: the answer is known, and would hide the reason.
		if (!isUsable && !isPlaintext && problem instanceof AgentError) throw withoutCredentials(problem);
		const isShown = isUsable && !(isCertificateWithheld && token !== undefined);
		const certificateText = isShown
			? `certificate ${held.spiffeId} until ${held.notAfter.toISOString()}`
			: held === undefined
				? 'no certificate'
				: 'certificate held back';
		return {certificate: isShown ? held : undefined, token, description: `${description}; ${certificateText}`};
	}

	const contextOf = (doing: string, endpoint: string, shown: Credentials): RefusalContext => ({
		doing,
		endpoint,
		credentials: shown.description,
		...workload,
	});

	function noteFailure(error: AgentError, shown: Credentials): void {
		failures({code: error.code});
		// Alternates: if it was not the certificate, the one after shows it again.
		isCertificateWithheld = shown.certificate !== undefined && mayBeCertificateRefusal(error);
	}

	/** In order of preference, but last the one that took our stream and gave nothing. */
	function inTurn(endpoints: readonly Endpoint[]): readonly Endpoint[] {
		const isPassedOver = (endpoint: Endpoint) => formatEndpoint(endpoint) === passedOver;
		return [...endpoints.filter(endpoint => !isPassedOver(endpoint)), ...endpoints.filter(isPassedOver)];
	}

	/** Tries the endpoints in order of preference; the error is the first one's, with the others' in its fields. */
	async function withEndpoint<T>(
		doing: string,
		endpoints: readonly Endpoint[],
		anchor: TrustAnchor,
		headers: Readonly<Record<string, string>>,
		auth: 'any' | 'certificate-only',
		act: (connection: Connection, shown: Credentials) => Promise<T>,
		signal: AbortSignal,
	): Promise<T> {
		const errors: AgentError[] = [];
		for (const endpoint of endpoints) {
			const shown = await chooseCredentials(auth, endpoint);
			try {
				const connection = await connect(connectDeps, endpoint, anchor, shown, headers, signal);
				return await act(connection, shown);
			} catch (cause) {
				signal.throwIfAborted();
				const error = explainRefusal(cause, contextOf(doing, formatEndpoint(endpoint), shown));
				noteFailure(error, shown);
				errors.push(error);
			}
		}
		const [first, ...others] = errors as [AgentError, ...AgentError[]];
		if (others.length > 0) log.debug({others: others.map(error => error.message)}, 'other endpoints failed too');
		throw first;
	}

	return {
		requestCertificate: (request, signal) =>
			withEndpoint(
				'request certificate',
				config.caEndpoints,
				config.caTrustAnchor,
				config.caHeaders,
				request.auth,
				async connection => {
					try {
						return await createCertificate(connection, request, signal);
					} finally {
						connection.close();
					}
				},
				signal,
			),

		openAdsStream: (protocol, signal) =>
			withEndpoint(
				'open the ADS stream',
				inTurn(config.endpoints),
				config.trustAnchor,
				config.xdsHeaders,
				'any',
				async (connection, shown) => {
					const call = connection.client.makeBidiStreamRequest(adsMethods[protocol], asIs, asIs, connection.metadata);
					return {
						call,
						endpoint: connection.endpoint,
						explain: (error, hasAnswered) => {
							passedOver = hasAnswered ? undefined : connection.endpoint;
							const explained = explainRefusal(error, contextOf('ADS stream', connection.endpoint, shown));
							noteFailure(explained, shown);
							return explained;
						},
						close: () => {
							call.cancel();
							connection.close();
						},
					};
				},
				signal,
			),
	};
}
