/** Signature bytes by algorithm, as RFC 7518 has them (section 3.4); RSA keys of Kubernetes have 2048 bits or more. */
const signatureBytes: Readonly<Record<string, readonly number[]>> = {
	RS256: [256, 384, 512, 1024],
	RS384: [256, 384, 512, 1024],
	RS512: [256, 384, 512, 1024],
	ES256: [64],
	ES384: [96],
	ES512: [132],
};

/**
 * What can be seen to be wrong with a JSON Web Token without a key: undefined if nothing. A cut in the signature
 * leaves a token that reads well and is refused by the control plane, hence the lengths.
 */
export function findTokenFault(token: string): string | undefined {
	const parts = token.trim().split('.');
	const [header = '', payload = '', signature = ''] = parts;
	if (parts.length !== 3 || !parts.every(part => /^[A-Za-z0-9_-]+$/.test(part)))
		return 'is not a JSON Web Token (three base64url parts separated by dots), or is cut short';
	const algorithm = readObject(header)?.['alg'];
	if (typeof algorithm !== 'string' || !readObject(payload))
		return 'is not a JSON Web Token: its header or payload cannot be read';
	const length = Buffer.from(signature, 'base64url').length;
	const expected = Object.hasOwn(signatureBytes, algorithm) ? signatureBytes[algorithm]! : [];
	return expected.length > 0 && !expected.includes(length)
		? `is cut short or damaged: its signature has ${length} bytes, and ${algorithm} makes ${expected.join(' or ')}`
		: undefined;
}

function readObject(part: string): Readonly<Record<string, unknown>> | undefined {
	try {
		const value: unknown = JSON.parse(Buffer.from(part, 'base64url').toString('utf8'));
		return typeof value === 'object' && value !== null && !Array.isArray(value)
			? (value as Readonly<Record<string, unknown>>)
			: undefined;
	} catch {
		// The parser's message would quote the token.
		return undefined;
	}
}
