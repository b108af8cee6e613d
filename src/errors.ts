/**
 * The one error class of the agent. Code branches on `code`, never on message text.
 * Codes are `room.what_happened`; each room keeps its own block below.
 */
export type ErrorCode =
	// config
	| 'config.invalid'
	| 'config.unreadable'
	// identity
	| 'identity.key_unsupported'
	| 'identity.state_unusable'
	| 'identity.state_locked'
	| 'identity.token_missing'
	| 'identity.token_empty'
	| 'identity.token_malformed'
	| 'identity.token_expired'
	| 'identity.token_audience'
	| 'identity.token_program'
	| 'identity.issued_invalid'
	| 'identity.source_unusable'
	// control plane
	| 'control_plane.unreachable'
	| 'control_plane.untrusted'
	| 'control_plane.root_unusable'
	| 'control_plane.unauthenticated'
	| 'control_plane.permission_denied'
	| 'control_plane.group_missing'
	| 'control_plane.node_refused'
	| 'control_plane.csr_refused'
	| 'control_plane.overloaded'
	| 'control_plane.not_ready'
	| 'control_plane.unsupported'
	| 'control_plane.failed'
	// kubernetes
	| 'kubernetes.access_unusable'
	| 'kubernetes.unreachable'
	| 'kubernetes.untrusted'
	| 'kubernetes.unauthenticated'
	| 'kubernetes.forbidden'
	| 'kubernetes.not_found'
	| 'kubernetes.unsupported'
	| 'kubernetes.conflict'
	| 'kubernetes.invalid'
	| 'kubernetes.failed'
	// registration
	| 'registration.group_missing'
	| 'registration.service_account'
	| 'registration.entry_foreign'
	// relay
	| 'relay.malformed'
	| 'relay.socket_unusable'
	| 'relay.snapshot_unusable'
	// proxy
	| 'proxy.binary_missing'
	| 'proxy.binary_unusable'
	| 'proxy.version_unsupported'
	| 'proxy.port_in_use'
	| 'proxy.admin_failed'
	| 'proxy.state_unusable'
	| 'proxy.replacement_failed'
	// dns
	| 'dns.name_invalid'
	| 'dns.off'
	| 'dns.table_too_large'
	| 'dns.resolved_refused'
	// status
	| 'status.port_in_use'
	| 'status.listen_failed'
	| 'status.command_failed'
	| 'status.unreachable'
	// capture
	| 'capture.user_missing'
	| 'capture.unit_missing'
	| 'capture.permission'
	| 'capture.unsupported'
	| 'capture.tool_missing'
	| 'capture.tool_failed'
	| 'capture.no_room'
	| 'capture.foreign_rules'
	| 'capture.not_ready'
	| 'capture.rolled_back'
	| 'capture.busy'
	// cli
	| 'cli.usage'
	| 'cli.service_failed'
	| 'cli.agent_differs'
	| 'internal';

export interface AgentErrorOptions {
	readonly cause?: unknown;
	/** What to do next, as a sentence a person can act on, with the command where there is one. */
	readonly hint?: string;
	/** Structured values for the log line; never secrets. */
	readonly fields?: Readonly<Record<string, unknown>>;
}

export class AgentError extends Error {
	override readonly name = 'AgentError';
	readonly code: ErrorCode;
	readonly hint: string | undefined;
	readonly fields: Readonly<Record<string, unknown>>;

	/** @param message - lower case, no full stop: what we were doing, to what, then why it failed */
	constructor(code: ErrorCode, message: string, options: AgentErrorOptions = {}) {
		super(message, options.cause === undefined ? undefined : {cause: options.cause});
		this.code = code;
		this.hint = options.hint;
		this.fields = options.fields ?? {};
	}
}

/** The text of anything thrown; a cause chain is followed once, as people read only the first two. */
export function reasonOf(error: unknown): string {
	if (!(error instanceof Error)) return String(error);
	const cause = error.cause instanceof Error ? error.cause.message : undefined;
	return cause && !error.message.includes(cause) ? `${error.message}: ${cause}` : error.message;
}

/** The `code` of a system error (`ENOENT`, `EACCES`, …), or undefined for anything else; ours have codes of their own. */
export function systemCode(error: unknown): string | undefined {
	if (!(error instanceof Error) || error instanceof AgentError || !('code' in error)) return undefined;
	return typeof error.code === 'string' ? error.code : undefined;
}

/** 0 ordered stop; 1 failure, a restart may help; 2 no agent to ask; 78 bad configuration, a restart cannot (EX_CONFIG). */
export function exitCodeOf(error: unknown): 1 | 2 | 78 {
	if (!(error instanceof AgentError)) return 1;
	// Scripts must tell "not ready" from "not there", and only commands that ask an agent meet this.
	if (error.code === 'status.unreachable') return 2;
	return exit78.has(error.code) ? 78 : 1;
}

/** Only what no restart can mend. Ports, disks and Envoy files can change under us, so they are 1. */
const exit78: ReadonlySet<ErrorCode> = new Set([
	'config.invalid',
	'config.unreadable',
	'identity.key_unsupported',
	'proxy.version_unsupported',
	'capture.user_missing',
	'capture.permission',
	'capture.unsupported',
	'capture.tool_missing',
	'cli.usage',
	'cli.agent_differs',
]);
