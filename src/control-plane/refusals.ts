import {status as grpcStatus, type ServiceError} from '@grpc/grpc-js';
import {AgentError, type ErrorCode} from '../errors.ts';

/** Who can mend a refusal. `time`: it passes by itself. */
export type Mender = 'vm operator' | 'mesh operator' | 'time';

/** What we asked with, so that a refusal can say what was seen here: the control plane's own log is elsewhere. */
export interface RefusalContext {
	/** `request certificate` or `open the ADS stream`. */
	readonly doing: string;
	readonly endpoint: string;
	readonly namespace: string;
	readonly serviceAccount: string;
	readonly clusterId: string;
	readonly group: string | undefined;
	/** How this call authenticated, in words: `token (expires …) and certificate (…)`, `nothing`. */
	readonly credentials: string;
}

/** A control plane that is there and does not want us; any other failure says nothing about our place in the mesh. */
const refusals: ReadonlySet<string> = new Set<ErrorCode>([
	'control_plane.group_missing',
	'control_plane.permission_denied',
	'control_plane.node_refused',
	'control_plane.unauthenticated',
]);

export const saysNo = (code: string): boolean => refusals.has(code);

interface Rule {
	readonly code: number;
	/** istiod gives some causes by text only; matched against its message. */
	readonly text?: RegExp;
	readonly to: ErrorCode;
	readonly mender: Mender;
	readonly cause: (context: RefusalContext) => string;
	readonly hint: (context: RefusalContext) => string;
}

const newBundle = (c: RefusalContext) =>
	`istioctl x workload entry configure --name ${c.group ?? 'GROUP'} --namespace ${c.namespace} --autoregister -o BUNDLE, then onramp join BUNDLE`;

/**
 * First match wins. Texts are those of istiod (pilot/pkg/autoregistration, pilot/pkg/xds, security/pkg/server/ca);
 * where it answers with a bare code, the cause names every reason istiod has for it.
 */
const rules: readonly Rule[] = [
	{
		code: grpcStatus.FAILED_PRECONDITION,
		text: /cannot find WorkloadGroup/,
		to: 'control_plane.group_missing',
		mender: 'mesh operator',
		cause: c => `WorkloadGroup ${c.namespace}/${c.group} does not exist`,
		hint: c =>
			`kubectl -n ${c.namespace} get workloadgroup; create ${c.group}, or correct AUTO_REGISTER_GROUP in the bundle. The agent keeps asking`,
	},
	{
		code: grpcStatus.UNKNOWN,
		text: /registration of WorkloadEntry service account mismatch/,
		to: 'control_plane.permission_denied',
		mender: 'mesh operator',
		cause: c => `WorkloadGroup ${c.namespace}/${c.group} is for another service account than ${c.serviceAccount}`,
		hint: c => `make the bundle anew from the group: ${newBundle(c)}`,
	},
	{
		code: grpcStatus.UNKNOWN,
		text: /registration of WorkloadEntry namespace mismatch/,
		to: 'control_plane.permission_denied',
		mender: 'mesh operator',
		cause: c => `our identity is of another namespace than ${c.namespace}`,
		hint: newBundle,
	},
	{
		code: grpcStatus.UNKNOWN,
		text: /requires a verified identity/,
		to: 'control_plane.unauthenticated',
		mender: 'vm operator',
		cause: c => `registration needs an identity, and this connection has none (${c.credentials})`,
		hint: () => 'connect to the TLS port (15012), not the plaintext one (15010)',
	},
	{
		code: grpcStatus.UNKNOWN,
		text: /must correspond to an existing WorkloadEntry/,
		to: 'control_plane.group_missing',
		mender: 'mesh operator',
		cause: c => `the WorkloadEntry named by WORKLOAD_ENTRY does not exist in ${c.namespace}`,
		hint: c => `kubectl -n ${c.namespace} get workloadentry; create it, or use auto-registration`,
	},
	{
		code: grpcStatus.UNAUTHENTICATED,
		to: 'control_plane.unauthenticated',
		mender: 'vm operator',
		cause: c =>
			`the control plane accepts none of our credentials (${c.credentials}); it gives no reason, the usual ones are an expired token, ` +
			`a token of another cluster or audience, or cluster id "${c.clusterId}" unknown to it`,
		hint: newBundle,
	},
	{
		code: grpcStatus.PERMISSION_DENIED,
		to: 'control_plane.permission_denied',
		mender: 'mesh operator',
		cause: c =>
			`our identity is not ${c.namespace}/${c.serviceAccount}, which the node metadata claims (${c.credentials})`,
		hint: c => `the token must be for service account ${c.serviceAccount} in ${c.namespace}: ${newBundle(c)}`,
	},
	{
		code: grpcStatus.INVALID_ARGUMENT,
		text: /csr|certificate request|TTL/i,
		to: 'control_plane.csr_refused',
		mender: 'vm operator',
		cause: () => 'the control plane does not accept the certificate request',
		hint: () =>
			'look at identity.certificate-lifetime (the CA has a maximum, 90 days by default) and identity.key-type',
	},
	{
		code: grpcStatus.INVALID_ARGUMENT,
		to: 'control_plane.node_refused',
		mender: 'vm operator',
		cause: () => 'the control plane cannot read our node metadata',
		hint: () =>
			'onramp config print shows the metadata; a value of the wrong type in proxyMetadata is the usual reason',
	},
	{
		code: grpcStatus.RESOURCE_EXHAUSTED,
		to: 'control_plane.overloaded',
		mender: 'time',
		cause: () => 'the control plane limits the rate of new connections',
		hint: () => 'nothing to do: the agent asks again, more slowly',
	},
	{
		code: grpcStatus.UNIMPLEMENTED,
		to: 'control_plane.unsupported',
		mender: 'mesh operator',
		cause: c => `${c.endpoint} does not offer this service`,
		hint: () => 'check that the address is istiod (port 15012) and its version is 1.24 or later',
	},
	{
		code: grpcStatus.UNAVAILABLE,
		text: /warmup|not ready/,
		to: 'control_plane.not_ready',
		mender: 'time',
		cause: () => 'the control plane is still starting',
		hint: () => 'nothing to do: the agent asks again',
	},
	{
		code: grpcStatus.UNAVAILABLE,
		to: 'control_plane.unreachable',
		mender: 'time',
		cause: () => 'the connection failed',
		hint: c => `check that ${c.endpoint} can be reached from here. The agent keeps trying`,
	},
	{
		// An istiod that is stopped in order may end a stream without a status.
		code: grpcStatus.INTERNAL,
		text: /RST_STREAM|without gRPC status/,
		to: 'control_plane.unreachable',
		mender: 'time',
		cause: () => 'the connection ended',
		hint: c => `check that ${c.endpoint} can be reached from here. The agent keeps trying`,
	},
	{
		code: grpcStatus.DEADLINE_EXCEEDED,
		to: 'control_plane.unreachable',
		mender: 'time',
		cause: () => 'no answer in time',
		hint: c => `check that ${c.endpoint} can be reached from here. The agent keeps trying`,
	},
];

/** A gRPC status as a typed error with cause, who can mend it, and the command. Other errors pass through. */
export function explainRefusal(error: unknown, context: RefusalContext): AgentError {
	if (error instanceof AgentError) return error;
	if (!isServiceError(error)) {
		return new AgentError('control_plane.failed', `${context.doing} at ${context.endpoint}: ${String(error)}`, {
			cause: error,
		});
	}
	const text = error.details || error.message;
	const rule = rules.find(({code, text: pattern}) => code === error.code && (!pattern || pattern.test(text)));
	const said = `${grpcStatus[error.code] ?? error.code}: ${text}`;
	if (!rule) {
		return new AgentError('control_plane.failed', `${context.doing} at ${context.endpoint}: ${said}`, {
			cause: error,
			hint: 'the control plane’s own log says more',
			fields: {grpcCode: error.code, mender: 'mesh operator' satisfies Mender},
		});
	}
	return new AgentError(rule.to, `${context.doing} at ${context.endpoint}: ${rule.cause(context)} (${said})`, {
		cause: error,
		hint: rule.hint(context),
		fields: {grpcCode: error.code, mender: rule.mender},
	});
}

export function isServiceError(error: unknown): error is ServiceError {
	return error instanceof Error && 'code' in error && typeof error.code === 'number';
}
