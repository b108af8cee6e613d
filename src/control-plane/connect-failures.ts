import {AgentError, type ErrorCode, reasonOf} from '../errors.ts';
import type {Mender} from './refusals.ts';

/** What was tried, so that the failure can say so. */
export interface ConnectContext {
	readonly endpoint: string;
	/** The name its certificate must carry. */
	readonly serverName: string;
	/** For people: where the roots come from. */
	readonly roots: string;
	/** For people: what we showed, or why not. */
	readonly credentials: string;
	readonly isCertificateShown: boolean;
}

interface Rule {
	/** Matched against what the socket said. */
	readonly text: RegExp;
	readonly holds?: (context: ConnectContext) => boolean;
	readonly to: ErrorCode;
	readonly mender: Mender;
	readonly cause: (context: ConnectContext, said: string) => string;
	readonly hint: (context: ConnectContext) => string;
}

/** First match wins. Texts are those of Node's and OpenSSL's verification, and the TLS alerts (RFC 8446, section 6). */
const rules: readonly Rule[] = [
	{
		text: /altnames|Hostname\/IP/i,
		to: 'control_plane.untrusted',
		mender: 'vm operator',
		cause: ({serverName}, said) => `its certificate is not for "${serverName}" (${said})`,
		hint: () => 'set control-plane.server-name (ISTIOD_SAN) to a name in the certificate, or correct the address',
	},
	{
		text: /alert certificate required|alert number 116/i,
		holds: ({isCertificateShown}) => !isCertificateShown,
		to: 'control_plane.unauthenticated',
		mender: 'vm operator',
		cause: ({credentials}) => `it takes nobody without a client certificate (${credentials})`,
		hint: () => 'istiod takes a token instead; is the address that of a gateway which ends TLS itself?',
	},
	{
		text: /alert (unknown ca|bad certificate|certificate (expired|revoked|unknown|required)|access denied|decrypt error)/i,
		to: 'control_plane.unauthenticated',
		mender: 'time',
		cause: ({credentials}, said) => `the control plane refuses our client certificate (${said}; ${credentials})`,
		hint: () => 'the agent goes on with the token alone; if it has none, make a new bundle and run onramp join BUNDLE',
	},
	{
		text: /certificate has expired|not yet valid/i,
		to: 'control_plane.untrusted',
		mender: 'mesh operator',
		cause: (_, said) => `its certificate is not valid by this machine's clock (${said})`,
		hint: () => "check this machine's clock (timedatectl), then the control plane's certificate",
	},
	{
		text: /self[- ]signed|unable to (verify|get)|signature failure|CERT_/i,
		to: 'control_plane.untrusted',
		mender: 'vm operator',
		cause: ({roots}, said) => `its certificate is not signed by any root in ${roots} (${said})`,
		hint: () =>
			"the mesh's root may have changed: compare with kubectl get configmap istio-ca-root-cert, and bring a new bundle with onramp join BUNDLE",
	},
	{
		text: /wrong version number|packet length too long|record layer failure/i,
		to: 'control_plane.unreachable',
		mender: 'vm operator',
		cause: (_, said) => `what answers there does not speak TLS (${said})`,
		hint: () => 'check address and port: istiod takes TLS at 15012; 15010 is its plaintext port, http:// says so',
	},
	{
		text: /no application protocol/i,
		to: 'control_plane.unreachable',
		mender: 'vm operator',
		cause: (_, said) => `what answers there does not speak gRPC (${said})`,
		hint: () => 'check address and port: istiod is at 15012',
	},
];

/** The reason a connection did not come up, in words; certificates refused by either side are told apart from a dead network. */
export function explainConnect(error: unknown, context: ConnectContext): AgentError {
	if (error instanceof AgentError) return error;
	const said = connectText(error);
	const {endpoint} = context;
	const rule = rules.find(({text, holds}) => text.test(said) && (holds?.(context) ?? true));
	const doing = `connect to ${endpoint}`;
	if (rule) {
		return new AgentError(rule.to, `${doing}: ${rule.cause(context, said)}`, {
			cause: error,
			hint: rule.hint(context),
			fields: {mender: rule.mender},
		});
	}
	return new AgentError('control_plane.unreachable', `${doing}: ${said}`, {
		cause: error,
		hint: `check that ${endpoint} can be reached from here (address in the bundle's hosts, firewall, east-west gateway)`,
		fields: {mender: 'time' satisfies Mender},
	});
}

/** What grpc-js says of a connection that ended before the other side had said anything. */
const closedEarly = 'closed before it was up';

/**
 * What the socket said, out of grpc-js's `No connection established. Last error: …`, on one line, without the time and
 * the places in OpenSSL's source, so that the same failure is the same text each time.
 */
function connectText(error: unknown): string {
	const text = error instanceof Error && 'details' in error && error.details ? String(error.details) : reasonOf(error);
	const last = text.match(/Last error: (.+?)(?:\. Resolution note:.*)?$/s)?.[1] ?? text;
	const plain = last
		.replace(/ \(\d{4}-\d\d-\d\dT[\d:.]+Z\)/, '')
		.replace(/^Error(?: \[\w+\])?: /, '')
		.replace(/; if the root CA is installed locally.*/s, '')
		.trim();
	if (plain === 'Failed to connect') return closedEarly;
	// LIBRARY: error:NUMBER:LIBRARY:FUNCTION:REASON:FILE:LINE:…
	return plain.match(/error:[0-9A-F]+:[^:]*:[^:]*:([^:]+):/)?.[1] ?? plain.replace(/\s+/g, ' ');
}

/**
 * Whether a failure can mean that the control plane did not like the certificate we showed: with TLS 1.3 it looks at it
 * after our side holds the handshake for done, and some just close the connection then.
 */
export function mayBeCertificateRefusal(error: unknown): boolean {
	if (!(error instanceof AgentError)) return false;
	if (error.code === 'control_plane.unauthenticated') return true;
	return (
		error.code === 'control_plane.unreachable' &&
		/ECONNRESET|EPIPE|socket|dropped|closed|disconnect/i.test(error.message)
	);
}
