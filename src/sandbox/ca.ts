import {createHash, createPublicKey, generateKeyPair, type KeyObject, randomBytes, sign, verify} from 'node:crypto';
import {promisify} from 'node:util';
import {bitString, context, encode, fromPem, integer, oid, readAll, sequence, tag, time, toPem} from './der.ts';

/** What a refused signing request is answered with; istiod's codes and texts. */
export class SigningError extends Error {
	readonly code: 'invalid_argument' | 'internal';
	constructor(code: 'invalid_argument' | 'internal', message: string) {
		super(message);
		this.code = code;
	}
}

interface Issuer {
	readonly key: KeyObject;
	readonly certPem: string;
	readonly name: Buffer;
	readonly keyId: Buffer;
	readonly notAfter: Date;
}

export interface IssueOptions {
	/** Becomes the only URI name; what the request asks for is ignored, as istiod does. */
	readonly spiffeId: string;
	/** `<= 0` means the default of 24 h. */
	readonly lifetimeMs: number;
}

/** `MAX_WORKLOAD_CERT_TTL` of istiod, 90 days. */
const maxLifetimeMs = 90 * 24 * 3_600_000;
const defaultLifetimeMs = 24 * 3_600_000;
/** istiod's `ClockSkewGracePeriod`. */
const backdateMs = 120_000;
const rootLifetimeMs = 10 * 365 * 24 * 3_600_000;

const ids = {
	ecdsaWithSha256: '1.2.840.10045.4.3.2',
	organization: '2.5.4.10',
	commonName: '2.5.4.3',
	keyUsage: '2.5.29.15',
	extendedKeyUsage: '2.5.29.37',
	basicConstraints: '2.5.29.19',
	subjectKeyId: '2.5.29.14',
	authorityKeyId: '2.5.29.35',
	subjectAltName: '2.5.29.17',
	serverAuth: '1.3.6.1.5.5.7.3.1',
	clientAuth: '1.3.6.1.5.5.7.3.2',
};

const signatureHashes: Record<string, string> = {
	[oid('1.2.840.10045.4.3.2').toString('hex')]: 'sha256',
	[oid('1.2.840.10045.4.3.3').toString('hex')]: 'sha384',
	[oid('1.2.840.10045.4.3.4').toString('hex')]: 'sha512',
	[oid('1.2.840.113549.1.1.11').toString('hex')]: 'sha256',
	[oid('1.2.840.113549.1.1.12').toString('hex')]: 'sha384',
	[oid('1.2.840.113549.1.1.13').toString('hex')]: 'sha512',
};

const generate = promisify(generateKeyPair);

/**
 * The mesh's certificate authority. The last root made signs; every root in the bundle is trusted and handed out, so
 * a rotation is: make a root, let every workload renew, drop the old one.
 */
export class CertificateAuthority {
	#roots: Issuer[];
	#intermediate: Issuer | undefined;
	readonly #hasIntermediate: boolean;
	issued = 0;

	private constructor(root: Issuer, hasIntermediate: boolean) {
		this.#roots = [root];
		this.#hasIntermediate = hasIntermediate;
	}

	/** @param hasIntermediate - sign with a certificate below the root, as a plugged-in CA does */
	static async create(hasIntermediate = false): Promise<CertificateAuthority> {
		const ca = new CertificateAuthority(await makeIssuer('cluster.local', undefined), hasIntermediate);
		await ca.#makeIntermediate();
		return ca;
	}

	/** The trust bundle: one root, or several one after the other while a rotation is on. */
	get rootsPem(): string {
		return this.#roots.map(root => root.certPem).join('');
	}

	/** Makes a new root the issuer; the old one stays trusted. */
	async rotateRoot(): Promise<void> {
		this.#roots = [...this.#roots, await makeIssuer('cluster.local', undefined)];
		await this.#makeIntermediate();
	}

	/** Leaves only the issuing root. */
	dropOldRoot(): void {
		this.#roots = this.#roots.slice(-1);
	}

	/**
	 * Answers a CSR as istiod does: `[leaf, intermediate…, trust bundle]`.
	 * @throws SigningError
	 */
	issue(csrPem: string, {spiffeId, lifetimeMs}: IssueOptions): string[] {
		const {publicKey, commonName} = parseRequest(csrPem);
		if (lifetimeMs > maxLifetimeMs) {
			const asked = renderGoDuration(lifetimeMs);
			throw new SigningError(
				'invalid_argument',
				`requested TTL ${asked} is greater than the max allowed TTL 2160h0m0s`,
			);
		}
		const leaf = this.#sign({
			publicKey,
			lifetimeMs: lifetimeMs <= 0 ? defaultLifetimeMs : lifetimeMs,
			// A common name in the request makes istiod put the identity there too ("dual use").
			subject: commonName === undefined ? sequence() : renderName(ids.commonName, spiffeId),
			altNames: [encode(0x86, Buffer.from(spiffeId))],
		});
		this.issued++;
		return [leaf, ...(this.#intermediate ? [this.#intermediate.certPem] : []), this.rootsPem];
	}

	/** The control plane's own certificate; istiod's carries DNS names only, never an address. */
	async issueServerCertificate(dnsNames: readonly string[]): Promise<{certPem: string; keyPem: string}> {
		const {publicKey, privateKey} = await generate('ec', {namedCurve: 'P-256'});
		const leaf = this.#sign({
			publicKey: publicKey.export({format: 'der', type: 'spki'}),
			lifetimeMs: rootLifetimeMs,
			subject: sequence(),
			altNames: dnsNames.map(name => encode(0x82, Buffer.from(name))),
		});
		const keyPem = privateKey.export({format: 'pem', type: 'pkcs8'}).toString();
		return {certPem: leaf + (this.#intermediate?.certPem ?? ''), keyPem};
	}

	#sign({publicKey, lifetimeMs, subject, altNames}: LeafOptions): string {
		const issuer = this.#intermediate ?? this.#roots.at(-1)!;
		const now = Date.now();
		return renderCertificate({
			issuer,
			subject,
			publicKey,
			notBefore: new Date(now - backdateMs),
			notAfter: new Date(Math.min(now + lifetimeMs, issuer.notAfter.getTime())),
			extensions: [
				extension(ids.keyUsage, true, bitString(Buffer.from([0xa0]), 5)),
				extension(ids.extendedKeyUsage, false, sequence(oid(ids.serverAuth), oid(ids.clientAuth))),
				extension(ids.basicConstraints, true, sequence()),
				extension(ids.authorityKeyId, false, sequence(encode(0x80, issuer.keyId))),
				extension(ids.subjectAltName, true, sequence(...altNames)),
			],
		});
	}

	async #makeIntermediate(): Promise<void> {
		if (this.#hasIntermediate) this.#intermediate = await makeIssuer('Intermediate CA', this.#roots.at(-1)!);
	}
}

interface LeafOptions {
	readonly publicKey: Uint8Array;
	readonly lifetimeMs: number;
	readonly subject: Buffer;
	readonly altNames: readonly Buffer[];
}

async function makeIssuer(organization: string, parent: Issuer | undefined): Promise<Issuer> {
	const {publicKey, privateKey} = await generate('ec', {namedCurve: 'P-256'});
	const spki = publicKey.export({format: 'der', type: 'spki'});
	const keyId = createHash('sha1').update(spki).digest();
	const name = renderName(ids.organization, organization);
	// Backdated by an hour: a test that steps its clock back a little must still trust its root.
	const notBefore = new Date(Date.now() - 3_600_000);
	const notAfter = new Date(notBefore.getTime() + rootLifetimeMs);
	const self = {key: privateKey, certPem: '', name, keyId, notAfter};
	const certPem = renderCertificate({
		issuer: parent ?? self,
		subject: name,
		publicKey: spki,
		notBefore,
		notAfter,
		extensions: [
			extension(ids.keyUsage, true, bitString(Buffer.from([0x04]), 2)),
			extension(ids.basicConstraints, true, sequence(encode(tag.boolean, Buffer.from([0xff])))),
			extension(ids.subjectKeyId, false, encode(tag.octetString, keyId)),
			...(parent ? [extension(ids.authorityKeyId, false, sequence(encode(0x80, parent.keyId)))] : []),
		],
	});
	return {...self, certPem};
}

interface CertificateFields {
	readonly issuer: Issuer;
	readonly subject: Buffer;
	readonly publicKey: Uint8Array;
	readonly notBefore: Date;
	readonly notAfter: Date;
	readonly extensions: readonly Buffer[];
}

function renderCertificate({issuer, subject, publicKey, notBefore, notAfter, extensions}: CertificateFields): string {
	const algorithm = sequence(oid(ids.ecdsaWithSha256));
	const serial = randomBytes(16);
	serial[0]! &= 0x7f;
	serial[0]! |= 0x40;
	const body = sequence(
		context(0, integer(Buffer.from([2]))),
		integer(serial),
		algorithm,
		issuer.name,
		sequence(time(notBefore), time(notAfter)),
		subject,
		publicKey,
		context(3, sequence(...extensions)),
	);
	return toPem('CERTIFICATE', sequence(body, algorithm, bitString(sign('sha256', body, issuer.key))));
}

function extension(id: string, isCritical: boolean, value: Buffer): Buffer {
	const critical = isCritical ? [encode(tag.boolean, Buffer.from([0xff]))] : [];
	return sequence(oid(id), ...critical, encode(tag.octetString, value));
}

function renderName(id: string, value: string): Buffer {
	return sequence(encode(tag.set, sequence(oid(id), encode(tag.utf8, Buffer.from(value)))));
}

/** @throws SigningError with istiod's texts for what is not a CSR, or is not signed by its own key */
function parseRequest(pem: string): {publicKey: Buffer; commonName: string | undefined} {
	const der = fromPem('CERTIFICATE REQUEST', pem);
	if (!der) throw new SigningError('invalid_argument', 'certificate signing request is not properly encoded');
	try {
		const [info, algorithm, signature] = readAll(readAll(der)[0]!.content);
		const [, subject, spki] = readAll(info!.content);
		const hash = signatureHashes[readAll(algorithm!.content)[0]!.raw.toString('hex')];
		const key = createPublicKey({key: Buffer.from(spki!.raw), format: 'der', type: 'spki'});
		if (!hash || !verify(hash, info!.raw, key, signature!.content.subarray(1))) throw new Error('signature');
		const names = readAll(subject!.content).flatMap(set => readAll(set.content).map(pair => readAll(pair.content)));
		const cn = names.find(([id]) => id!.raw.equals(oid(ids.commonName)))?.[1]?.content.toString('utf8');
		return {publicKey: spki!.raw, commonName: cn === '' ? undefined : cn};
	} catch {
		throw new SigningError('invalid_argument', 'failed to parse X.509 certificate signing request');
	}
}

/** `2161h0m0s`, as Go prints a duration of whole seconds. */
function renderGoDuration(ms: number): string {
	const seconds = Math.floor(ms / 1000);
	return `${Math.floor(seconds / 3600)}h${Math.floor(seconds / 60) % 60}m${seconds % 60}s`;
}
