import {createHash, generateKeyPairSync, type KeyObject, randomUUID, sign, verify} from 'node:crypto';

export interface TokenRequest {
	readonly namespace: string;
	readonly serviceAccount: string;
	/** `istio-ca` unless said otherwise. */
	readonly audience?: string;
	/** One hour unless said otherwise, as `istioctl` asks for. */
	readonly lifetimeMs?: number;
	/** Makes a token that ended a minute ago. */
	readonly expired?: boolean;
}

export interface ServiceAccount {
	readonly namespace: string;
	readonly serviceAccount: string;
}

const issuer = 'https://kubernetes.default.svc.cluster.local';

/** Plays the Kubernetes API server: issues service account tokens (RS256) and reviews them. */
export class TokenAuthority {
	readonly #key: KeyObject;
	readonly #publicKey: KeyObject;
	readonly #keyId: string;

	constructor() {
		const {privateKey, publicKey} = generateKeyPairSync('rsa', {modulusLength: 2048});
		this.#key = privateKey;
		this.#publicKey = publicKey;
		const der = publicKey.export({format: 'der', type: 'spki'});
		this.#keyId = createHash('sha256').update(der).digest('base64url');
	}

	issue({
		namespace,
		serviceAccount,
		audience = 'istio-ca',
		lifetimeMs = 3_600_000,
		expired = false,
	}: TokenRequest): string {
		const now = Math.floor(Date.now() / 1000) - (expired ? lifetimeMs / 1000 + 60 : 0);
		const claims = {
			aud: [audience],
			exp: Math.floor(now + lifetimeMs / 1000),
			iat: now,
			iss: issuer,
			jti: randomUUID(),
			'kubernetes.io': {namespace, serviceaccount: {name: serviceAccount, uid: randomUUID()}},
			nbf: now,
			sub: `system:serviceaccount:${namespace}:${serviceAccount}`,
		};
		const head = {alg: 'RS256', kid: this.#keyId};
		const body = [head, claims].map(part => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.');
		return `${body}.${sign('sha256', Buffer.from(body), this.#key).toString('base64url')}`;
	}

	/** @returns whose token it is, or undefined for one that is not ours, not for istiod, or past its end */
	review(token: string): ServiceAccount | undefined {
		const [head, body, signature, ...rest] = token.split('.');
		if (!head || !body || !signature || rest.length > 0) return undefined;
		const signed = Buffer.from(`${head}.${body}`);
		if (!verify('sha256', signed, this.#publicKey, Buffer.from(signature, 'base64url'))) return undefined;
		const claims = JSON.parse(Buffer.from(body, 'base64url').toString()) as {aud: string[]; exp: number; sub: string};
		const [, , namespace, serviceAccount] = claims.sub.split(':');
		if (!claims.aud.includes('istio-ca') || claims.exp * 1000 <= Date.now()) return undefined;
		return namespace && serviceAccount ? {namespace, serviceAccount} : undefined;
	}
}
