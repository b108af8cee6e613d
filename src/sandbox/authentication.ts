import type {X509Certificate} from 'node:crypto';
import type {Call} from './grpc-server.ts';
import type {TokenAuthority} from './tokens.ts';

export interface Caller {
	readonly kind: 'certificate' | 'token';
	/** SPIFFE IDs. */
	readonly identities: readonly string[];
}

export interface AuthenticationDeps {
	readonly tokens: TokenAuthority;
	readonly trustDomain: string;
	readonly clusterId: string;
}

/**
 * Who is calling: the client certificate first, then the token. A token from a cluster istiod does not know is
 * worth nothing, and the caller is not told why.
 */
export function authenticate(call: Call, {tokens, trustDomain, clusterId}: AuthenticationDeps): Caller | undefined {
	if (call.clientCertificate) {
		const identities = readIdentities(call.clientCertificate);
		if (identities.length > 0) return {kind: 'certificate', identities};
	}
	const claimed = call.headers['clusterid'] ?? '';
	const [, token] = /^Bearer (.+)$/.exec(call.headers.authorization ?? '') ?? [];
	if (!token || (claimed !== '' && claimed !== clusterId)) return undefined;
	const account = tokens.review(token);
	if (!account) return undefined;
	return {kind: 'token', identities: [`spiffe://${trustDomain}/ns/${account.namespace}/sa/${account.serviceAccount}`]};
}

/** The URI names of a certificate. */
export function readIdentities(certificate: X509Certificate): string[] {
	return (certificate.subjectAltName ?? '')
		.split(', ')
		.filter(name => name.startsWith('URI:'))
		.map(name => name.slice(4));
}

export interface ParsedIdentity {
	readonly namespace: string;
	readonly serviceAccount: string;
}

export function parseIdentity(spiffeId: string): ParsedIdentity | undefined {
	const [, namespace, serviceAccount] = /^spiffe:\/\/[^/]+\/ns\/([^/]+)\/sa\/([^/]+)$/.exec(spiffeId) ?? [];
	return namespace && serviceAccount ? {namespace, serviceAccount} : undefined;
}
