import {AgentError, reasonOf, systemCode} from '../errors.ts';
import {Secret} from '../log.ts';
import {readSmallFile} from './small-file.ts';

export interface BootstrapToken {
	readonly token: Secret;
	/** From `exp`; absent when the token names none. */
	readonly expiresAt?: Date | undefined;
	readonly audiences: readonly string[];
	/** `system:serviceaccount:NAMESPACE:NAME` for tokens made by Kubernetes. */
	readonly subject?: string | undefined;
	/**
	 * Doubts that are the control plane's to decide, as sentences. A foreign audience is one: istiod may be set to
	 * accept others (TOKEN_AUDIENCES), so the token is handed out and its refusal explained afterwards.
	 */
	readonly problems: readonly AgentError[];
}

export interface TokenExpectation {
	readonly audience: string;
	/** Wall-clock time the expiry is compared with. */
	readonly now: Date;
}

/** Kubernetes tokens are about 1 KiB; anything this large is another file. */
const maxTokenBytes = 64 * 1024;

const remedy =
	'make a new token with `istioctl x workload entry configure …` and bring it with `onramp join BUNDLE`, or write it to that path';

/**
 * Reads the bootstrap token and looks at its claims without verifying the signature, which only the control plane can.
 * The file is opened anew each time, so a replaced token is used at once. Nothing thrown contains the token.
 * @throws AgentError identity.token_missing, token_empty, token_malformed (not a JWT, binary, over 64 KiB), token_expired
 */
export async function readBootstrapToken(path: string, {audience, now}: TokenExpectation): Promise<BootstrapToken> {
	return parseBootstrapToken(await readText(path), path, {audience, now});
}

/**
 * @param path - as it follows "token" in a message
 * @throws AgentError identity.token_empty, token_malformed, token_expired
 */
export function parseBootstrapToken(
	untrimmed: string,
	path: string,
	{audience, now}: TokenExpectation,
): BootstrapToken {
	const text = untrimmed.trim();
	if (text === '') {
		throw new AgentError('identity.token_empty', `read token ${path}: it is empty`, {hint: remedy});
	}
	const claims = parseClaims(path, text);
	const subject = typeof claims['sub'] === 'string' ? claims['sub'] : undefined;
	const audiences = [claims['aud']].flat().filter(value => typeof value === 'string');
	const expiresAt = parseExpiry(path, claims['exp']);
	if (expiresAt && expiresAt <= now) {
		throw new AgentError(
			'identity.token_expired',
			`read token ${path}: expired at ${expiresAt.toISOString()}, it is ${now.toISOString()}${subject ? ` (subject "${subject}")` : ''}`,
			{hint: remedy, fields: {expiresAt, audiences, subject}},
		);
	}
	return {
		token: new Secret(text),
		expiresAt,
		audiences,
		subject,
		problems: audienceProblems(path, audience, audiences),
	};
}

function audienceProblems(path: string, audience: string, audiences: readonly string[]): AgentError[] {
	if (audiences.includes(audience)) return [];
	const seen = audiences.length === 0 ? 'none' : audiences.map(name => `"${name}"`).join(', ');
	return [
		new AgentError('identity.token_audience', `read token ${path}: audience is ${seen}, expected "${audience}"`, {
			hint: `ask for a token with audience "${audience}", or set the audience the control plane accepts; ${remedy}`,
			fields: {audiences},
		}),
	];
}

async function readText(path: string): Promise<string> {
	try {
		return (await readSmallFile(path, maxTokenBytes)).toString('latin1');
	} catch (error) {
		const code = systemCode(error);
		if (code === undefined) throw malformed(path, reasonOf(error));
		const isAbsent = code === 'ENOENT' || code === 'ENOTDIR';
		throw new AgentError(
			'identity.token_missing',
			`read token ${path}: ${isAbsent ? 'no such file' : reasonOf(error)}`,
			{
				cause: error,
				hint: isAbsent ? remedy : `make ${path} readable for the user the agent runs as`,
			},
		);
	}
}

function parseClaims(path: string, text: string): Readonly<Record<string, unknown>> {
	const parts = text.split('.');
	// The alphabet of base64url also keeps control characters out of the authorization header.
	if (parts.length !== 3 || !parts.every(part => /^[A-Za-z0-9_-]+$/.test(part))) {
		throw malformed(path, 'it is not a JSON Web Token (three base64url parts separated by dots)');
	}
	let claims: unknown;
	try {
		claims = JSON.parse(Buffer.from(parts[1]!, 'base64url').toString('utf8'));
	} catch {
		// The parser's message quotes what it could not read, which is part of the token.
		throw malformed(path, 'its payload is not JSON');
	}
	if (typeof claims !== 'object' || claims === null || Array.isArray(claims))
		throw malformed(path, 'its payload is not a JSON object');
	return claims as Readonly<Record<string, unknown>>;
}

function parseExpiry(path: string, exp: unknown): Date | undefined {
	if (exp === undefined) return undefined;
	const expiresAt = new Date(typeof exp === 'number' ? exp * 1000 : Number.NaN);
	if (Number.isNaN(expiresAt.getTime())) throw malformed(path, 'its "exp" is not a number of seconds');
	return expiresAt;
}

function malformed(path: string, why: string): AgentError {
	return new AgentError('identity.token_malformed', `read token ${path}: ${why}`, {hint: remedy});
}
