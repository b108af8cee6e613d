import forge from 'node-forge';

const keys = forge.pki.rsa.generateKeyPair(2048);

/** A self-signed certificate, valid in 2030 unless told otherwise. */
export function makeCertificate({isCa = true, from = '2030-01-01', to = '2031-01-01'}): string {
	const certificate = forge.pki.createCertificate();
	certificate.publicKey = keys.publicKey;
	certificate.serialNumber = '01';
	certificate.validity.notBefore = new Date(from);
	certificate.validity.notAfter = new Date(to);
	certificate.setSubject([{name: 'organizationName', value: 'test'}]);
	certificate.setIssuer([{name: 'organizationName', value: 'test'}]);
	certificate.setExtensions([{name: 'basicConstraints', cA: isCa, critical: true}]);
	certificate.sign(keys.privateKey, forge.md.sha256.create());
	return forge.pki.certificateToPem(certificate);
}
