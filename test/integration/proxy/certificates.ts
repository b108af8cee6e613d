import {generateKeyPairSync} from 'node:crypto';
import forge from 'node-forge';
import {Secret} from '../../../src/log.ts';
import type {SecretMaterial} from '../../../src/proxy/xds.ts';

/** A self-signed certificate of this name with its key; its own trust bundle. */
export function makeMaterial(name: string): SecretMaterial {
	const {publicKey, privateKey} = generateKeyPairSync('rsa', {
		modulusLength: 2048,
		publicKeyEncoding: {type: 'spki', format: 'pem'},
		privateKeyEncoding: {type: 'pkcs8', format: 'pem'},
	});
	const certificate = forge.pki.createCertificate();
	certificate.publicKey = forge.pki.publicKeyFromPem(publicKey);
	certificate.serialNumber = '01';
	certificate.validity.notBefore = new Date(Date.now() - 3600_000);
	certificate.validity.notAfter = new Date(Date.now() + 3600_000);
	const subject = [{name: 'commonName', value: name}];
	certificate.setSubject(subject);
	certificate.setIssuer(subject);
	certificate.sign(forge.pki.privateKeyFromPem(privateKey), forge.md.sha256.create());
	const chainPem = forge.pki.certificateToPem(certificate);
	return {chainPem, trustBundlePem: chainPem, keyPem: new Secret(privateKey)};
}
