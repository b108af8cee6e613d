export {startIdentity} from './identity.ts';
export {type BootstrapToken, readBootstrapToken} from './token.ts';
export {createTokenSource, type TokenSource} from './token-source.ts';
export type {
	CertificateOrigin,
	CertificateRequest,
	Identity,
	IdentityDeps,
	IdentityFailure,
	IdentityState,
	IdentityStatus,
	RequestCertificate,
	TokenlessRenewal,
	WorkloadCertificate,
} from './types.ts';
