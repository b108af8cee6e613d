import './reflect.ts';
import {createPublicKey, generateKeyPairSync, type KeyObject, randomBytes, webcrypto} from 'node:crypto';
import * as x509 from '@peculiar/x509';
import {Secret} from '../../../src/log.ts';

x509.cryptoProvider.set(webcrypto as never);

const ecdsa = {name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256'};

export interface Life {
	readonly notBefore: Date;
	readonly notAfter: Date;
}

export const era: Life = {notBefore: new Date('2020-01-01T00:00:00Z'), notAfter: new Date('2045-01-01T00:00:00Z')};

/** A certificate authority made for one test, with the second opinion's library so that ours is not its own judge. */
export class TestCa {
	readonly certificate: x509.X509Certificate;
	readonly #keys: webcrypto.CryptoKeyPair;

	constructor(certificate: x509.X509Certificate, keys: webcrypto.CryptoKeyPair) {
		this.certificate = certificate;
		this.#keys = keys;
	}

	get pem(): string {
		return `${this.certificate.toString('pem')}\n`;
	}

	/** A CA below this one. */
	async intermediate({life = era, isCa = true}: {life?: Life; isCa?: boolean} = {}): Promise<TestCa> {
		const keys = (await webcrypto.subtle.generateKey(ecdsa, true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair;
		const certificate = await x509.X509CertificateGenerator.create({
			subject: `CN=intermediate ${randomBytes(4).toString('hex')}`,
			issuer: this.certificate.subject,
			...life,
			signingAlgorithm: ecdsa,
			publicKey: keys.publicKey as never,
			signingKey: this.#keys.privateKey as never,
			extensions: [new x509.BasicConstraintsExtension(isCa, undefined, true)],
		});
		return new TestCa(certificate, keys);
	}

	/** Signs the key of a CSR as istiod does: the names come from `uris`, not from the request. */
	async sign(csrPem: string, uris: readonly string[], life: Life): Promise<string> {
		const request = new x509.Pkcs10CertificateRequest(csrPem);
		return this.#issue(request.publicKey, uris, life);
	}

	/** A leaf for a key that is at hand, in PEM. */
	async issue(privateKey: KeyObject, uris: readonly string[], life: Life = era): Promise<string> {
		const spki = createPublicKey(privateKey).export({type: 'spki', format: 'der'});
		return this.#issue(new x509.PublicKey(spki), uris, life);
	}

	/** Certificate and key of a TLS server. */
	async serve(dnsNames: readonly string[], life: Life = era): Promise<{cert: string; key: string}> {
		const {privateKey, publicKey} = generateKeyPairSync('ec', {namedCurve: 'P-256'});
		const spki = new x509.PublicKey(publicKey.export({type: 'spki', format: 'der'}));
		return {
			cert: await this.#issueFor(
				spki,
				dnsNames.map(value => ({type: 'dns' as const, value})),
				life,
			),
			key: privateKey.export({type: 'pkcs8', format: 'pem'}).toString(),
		};
	}

	#issue(publicKey: x509.PublicKey, uris: readonly string[], life: Life): Promise<string> {
		return this.#issueFor(
			publicKey,
			uris.map(value => ({type: 'url' as const, value})),
			life,
		);
	}

	async #issueFor(publicKey: x509.PublicKey, names: x509.JsonGeneralNames, life: Life): Promise<string> {
		const certificate = await x509.X509CertificateGenerator.create({
			subject: '',
			issuer: this.certificate.subject,
			serialNumber: randomBytes(12).toString('hex'),
			...life,
			signingAlgorithm: ecdsa,
			publicKey: publicKey as never,
			signingKey: this.#keys.privateKey as never,
			extensions: [new x509.SubjectAlternativeNameExtension(names, true)],
		});
		return `${certificate.toString('pem')}\n`;
	}
}

export async function createCa(life: Life = era, name = `CN=root ${randomBytes(4).toString('hex')}`): Promise<TestCa> {
	const keys = (await webcrypto.subtle.generateKey(ecdsa, true, ['sign', 'verify'])) as webcrypto.CryptoKeyPair;
	const certificate = await x509.X509CertificateGenerator.createSelfSigned({
		name,
		...life,
		signingAlgorithm: ecdsa,
		keys: keys as never,
		extensions: [new x509.BasicConstraintsExtension(true, undefined, true)],
	});
	return new TestCa(certificate, keys);
}

/** A token as Kubernetes makes it, with a signature that nobody here checks. */
export function renderToken(claims: Record<string, unknown>): string {
	const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
	return `${part({alg: 'RS256', kid: 'k'})}.${part(claims)}.${randomBytes(32).toString('base64url')}`;
}

export function secretOf(key: KeyObject): Secret {
	return new Secret(key.export({type: 'pkcs8', format: 'pem'}).toString());
}
