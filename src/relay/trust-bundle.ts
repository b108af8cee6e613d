import {X509Certificate} from 'node:crypto';
import {AgentError} from '../errors.ts';
import {FieldReader} from '../proto/wire.ts';

/** The content of an Any: its field 2. */
export function bodyOf(any: Buffer): Buffer {
	for (const field = new FieldReader(any); field.next(); ) if (field.number === 2) return field.bytes();
	return Buffer.alloc(0);
}

/**
 * Roots in istio.mesh.v1alpha1.ProxyConfig: ca_certificates_pem 34, repeated.
 * @throws AgentError relay.malformed
 */
export function parseTrustBundle(proxyConfig: Buffer): readonly string[] {
	const roots: string[] = [];
	for (const field = new FieldReader(proxyConfig); field.next(); ) {
		if (field.number !== 34) continue;
		const pem = field.string();
		if (!holdsCertificates(pem)) {
			throw new AgentError(
				'relay.malformed',
				'read trust bundle of the control plane: an entry is not a PEM certificate',
			);
		}
		roots.push(pem);
	}
	return roots;
}

function holdsCertificates(pem: string): boolean {
	const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]*(?:-----END CERTIFICATE-----|$)/g) ?? [];
	return blocks.length > 0 && blocks.every(isCertificate);
}

function isCertificate(block: string): boolean {
	try {
		return new X509Certificate(block).raw.length > 0;
	} catch {
		return false;
	}
}
