import {type KeyObject, sign} from 'node:crypto';
import asn1 from 'node-forge/lib/asn1.js';

type Asn1 = ReturnType<typeof asn1.create>;

const oids = {
	organization: '2.5.4.10',
	extensionRequest: '1.2.840.113549.1.9.14',
	subjectAltName: '2.5.29.17',
	ecdsaWithSha256: '1.2.840.10045.4.3.2',
	ecdsaWithSha384: '1.2.840.10045.4.3.3',
	sha256WithRsa: '1.2.840.113549.1.1.11',
} as const;

/**
 * A PKCS#10 request (RFC 2986) as Istio's agent makes it: subject with one empty organization, one critical URI name.
 * istiod's own CA looks at the public key only, but signers behind Kubernetes compare subject and names exactly.
 * The encoder has no elliptic curves, so it encodes and node:crypto signs.
 * @returns PEM
 */
export function renderCsr(
	{privateKey, publicKey}: {privateKey: KeyObject; publicKey: KeyObject},
	spiffeId: string,
): string {
	const {oid, hash, hasNullParameter} = signatureOf(privateKey);
	const info = sequence(
		integer(0),
		sequence(set(sequence(objectId(oids.organization), leaf(asn1.Type.UTF8, '')))),
		asn1.fromDer(publicKey.export({type: 'spki', format: 'der'}).toString('latin1')),
		context(0, true, [sequence(objectId(oids.extensionRequest), set(sequence(subjectAltName(spiffeId))))]),
	);
	const signature = sign(hash, Buffer.from(asn1.toDer(info).getBytes(), 'latin1'), privateKey);
	const algorithm = hasNullParameter ? sequence(objectId(oid), leaf(asn1.Type.NULL, '')) : sequence(objectId(oid));
	const request = sequence(info, algorithm, leaf(asn1.Type.BITSTRING, `\0${signature.toString('latin1')}`));
	return renderPem('CERTIFICATE REQUEST', Buffer.from(asn1.toDer(request).getBytes(), 'latin1'));
}

/** RFC 5758: no parameters for ECDSA; RFC 4055: NULL for RSA. The hash goes with the curve, as in Go's defaults. */
function signatureOf(key: KeyObject): {oid: string; hash: string; hasNullParameter: boolean} {
	if (key.asymmetricKeyType === 'rsa') return {oid: oids.sha256WithRsa, hash: 'sha256', hasNullParameter: true};
	if (key.asymmetricKeyDetails?.namedCurve === 'secp384r1') {
		return {oid: oids.ecdsaWithSha384, hash: 'sha384', hasNullParameter: false};
	}
	return {oid: oids.ecdsaWithSha256, hash: 'sha256', hasNullParameter: false};
}

function subjectAltName(uri: string): Asn1 {
	// GeneralName [6] uniformResourceIdentifier is an IA5String (RFC 5280 4.2.1.6).
	const names = sequence(context(6, false, uri));
	return sequence(
		objectId(oids.subjectAltName),
		leaf(asn1.Type.BOOLEAN, '\xff'),
		leaf(asn1.Type.OCTETSTRING, asn1.toDer(names).getBytes()),
	);
}

function leaf(type: number, bytes: string): Asn1 {
	return asn1.create(asn1.Class.UNIVERSAL, type, false, bytes);
}

function objectId(oid: string): Asn1 {
	return leaf(asn1.Type.OID, asn1.oidToDer(oid).getBytes());
}

function integer(value: number): Asn1 {
	return leaf(asn1.Type.INTEGER, asn1.integerToDer(value).getBytes());
}

function sequence(...children: Asn1[]): Asn1 {
	return asn1.create(asn1.Class.UNIVERSAL, asn1.Type.SEQUENCE, true, children);
}

function set(...children: Asn1[]): Asn1 {
	return asn1.create(asn1.Class.UNIVERSAL, asn1.Type.SET, true, children);
}

function context(tag: number, isConstructed: boolean, value: string | Asn1[]): Asn1 {
	return asn1.create(asn1.Class.CONTEXT_SPECIFIC, tag as never, isConstructed, value as never);
}

function renderPem(label: string, der: Buffer): string {
	const lines = der.toString('base64').match(/.{1,64}/g) ?? [];
	return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}
