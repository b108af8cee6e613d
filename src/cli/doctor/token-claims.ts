import {diskReader, findTokenFault} from '../../config/index.ts';

/** When a token says it was made; undefined when there is none, or it does not say. */
export function readBootstrapClaims(path: string): {readonly issuedAt: Date | undefined} | undefined {
	try {
		const bytes = diskReader.read(path, 65_536);
		const text = bytes ? Buffer.from(bytes).toString('latin1') : '';
		if (findTokenFault(text) !== undefined) return undefined;
		const {iat} = JSON.parse(Buffer.from(text.trim().split('.')[1]!, 'base64url').toString('utf8')) as {iat?: unknown};
		return {issuedAt: typeof iat === 'number' && Math.abs(iat) < 8e12 ? new Date(iat * 1000) : undefined};
	} catch {
		// The check of the token tells why it cannot be read.
		return undefined;
	}
}
