import {FieldReader, FieldWriter} from '../proto/wire.ts';
import type {Caller} from './authentication.ts';
import {type CertificateAuthority, SigningError} from './ca.ts';
import type {Call, Method} from './grpc-server.ts';
import type {GrpcStatus} from './grpc-wire.ts';

export interface CaServiceDeps {
	readonly ca: () => CertificateAuthority;
	readonly authenticate: (call: Call) => Caller | undefined;
	/** Overrides every answer, while set. */
	readonly refusal: () => GrpcStatus | undefined;
	/** Given instead of what is asked for, when set. */
	readonly lifetimeMs: () => number | undefined;
	readonly onIssued: (caller: Caller) => void;
}

interface CertificateRequest {
	readonly csrPem: string;
	readonly validitySeconds: number;
	readonly hasImpersonation: boolean;
}

/** `istio.v1.auth.IstioCertificateService/CreateCertificate`. */
export function createCertificateMethod(deps: CaServiceDeps): Method {
	return call => ({
		onMessage(message) {
			const answer = answerRequest(message, call, deps);
			if ('code' in answer) {
				call.end(answer);
				return;
			}
			call.send(new FieldWriter().strings(1, answer.chain).finish());
			call.end();
		},
	});
}

function answerRequest(
	message: Buffer,
	call: Call,
	deps: CaServiceDeps,
): GrpcStatus | {readonly chain: readonly string[]} {
	const refusal = deps.refusal();
	if (refusal) return refusal;
	const caller = deps.authenticate(call);
	if (!caller) return {code: 'unauthenticated', message: 'request authenticate failure'};
	try {
		const {csrPem, validitySeconds, hasImpersonation} = parseRequest(message);
		if (hasImpersonation) return {code: 'unauthenticated', message: 'request impersonation authentication failure'};
		const lifetimeMs = deps.lifetimeMs() ?? validitySeconds * 1000;
		const chain = deps.ca().issue(csrPem, {spiffeId: caller.identities[0]!, lifetimeMs});
		deps.onIssued(caller);
		return {chain};
	} catch (error) {
		if (error instanceof SigningError) return {code: error.code, message: `CSR signing error (${error.message})`};
		return {code: 'internal', message: String(error)};
	}
}

function parseRequest(message: Buffer): CertificateRequest {
	let csrPem = '';
	let validitySeconds = 0;
	let hasImpersonation = false;
	for (const reader = new FieldReader(message); reader.next(); ) {
		if (reader.number === 1) csrPem = reader.string();
		else if (reader.number === 3) validitySeconds = reader.uint();
		// Struct → fields → key; a VM has no business with it, so presence is all that matters.
		else if (reader.number === 4) hasImpersonation = reader.bytes().includes('ImpersonatedIdentity');
	}
	return {csrPem, validitySeconds, hasImpersonation};
}
