import {type KeyObject, X509Certificate} from 'node:crypto';
import {AgentError} from '../errors.ts';
import type {Secret} from '../log.ts';
import {parseKey} from './key.ts';

/** A key with a chain that fits it and leads to one of the roots. */
export interface VerifiedPair {
	readonly spiffeId: string;
	readonly serial: string;
	readonly notBefore: Date;
	readonly notAfter: Date;
	/** Leaf first, without roots. */
	readonly chainPem: string;
	readonly keyPem: Secret;
	/** One PEM block each, sorted, without duplicates. Never empty. */
	readonly rootsPem: readonly string[];
	/** What is odd but no reason to refuse. */
	readonly warnings: readonly string[];
}

export interface PairInput {
	/** Leaf and intermediates; roots among them do no harm. */
	readonly chainPem: string;
	readonly rootsPem: string;
	readonly keyPem: Secret;
}

export interface PairExpectation {
	readonly now: Date;
	/** Our name as configured; another one is accepted with a warning. */
	readonly spiffeId?: string;
}

/** A mesh with many roots has some dozen KiB; the bound keeps hostile input from occupying the event loop. */
const maxPemLength = 1024 * 1024;
const maxDepth = 10;

/**
 * Checks what the control plane answered: `[leaf, intermediate…, roots]`, where each element may hold several blocks.
 * @throws AgentError identity.issued_invalid
 */
export function parseIssued(elements: readonly string[], keyPem: Secret, expected: PairExpectation): VerifiedPair {
	if (elements.length < 2) {
		throw invalid(`chain has ${elements.length} element(s), expected the certificate and at least one root`);
	}
	return verifyPair({chainPem: elements.slice(0, -1).join('\n'), rootsPem: elements.at(-1)!, keyPem}, expected);
}

/**
 * Checks that key, chain and roots belong together and that the leaf is a SPIFFE identity that has not expired.
 * A leaf that is not valid yet is accepted with a warning: our clock is more likely wrong than the CA's, and the peers'
 * clocks decide. One that has expired is refused, since serving it would look valid from here.
 * @throws AgentError identity.issued_invalid
 */
export function verifyPair({chainPem, rootsPem, keyPem}: PairInput, {now, spiffeId}: PairExpectation): VerifiedPair {
	const warnings: string[] = [];
	const [leaf, ...intermediates] = parseCertificates(chainPem, why => {
		throw invalid(`certificate chain: ${why}`);
	});
	if (!leaf) throw invalid('chain holds no certificate');
	const roots = parseRoots(rootsPem, why => warnings.push(`trust bundle: ${why}, left out`));
	if (roots.length === 0) throw invalid('trust bundle holds no certificate');
	if (!leaf.checkPrivateKey(privateKeyOf(keyPem))) throw invalid('the certificate is for another key');
	const pair = {
		spiffeId: spiffeIdOf(leaf, spiffeId),
		serial: leaf.serialNumber,
		notBefore: leaf.validFromDate,
		notAfter: leaf.validToDate,
		chainPem: [leaf, ...intermediates.filter(certificate => !isSelfSigned(certificate))].map(String).join(''),
		keyPem,
		rootsPem: roots.map(String),
	};
	if (pair.notAfter <= now) throw expired(pair.notAfter, now);
	verifyChain(leaf, intermediates, roots, now);
	if (pair.notBefore > now) warnings.push(notYetValid(pair.notBefore, now));
	if (spiffeId !== undefined && workloadOf(pair.spiffeId) !== workloadOf(spiffeId)) {
		throw invalid(`it names ${pair.spiffeId}, this workload is ${spiffeId}`, {
			hint: 'the token is that of another service account: make a new bundle with `istioctl x workload entry configure …` and run `onramp join BUNDLE`',
		});
	}
	// The trust domain is the control plane's to decide.
	if (spiffeId !== undefined && pair.spiffeId !== spiffeId) {
		warnings.push(`the certificate names ${pair.spiffeId}, asked for was ${spiffeId}`);
	}
	return {...pair, warnings};
}

/** Sorted PEM blocks of every root in the texts, without duplicates. What cannot be parsed is told and left out. */
export function mergeRoots(texts: Iterable<string>, onBroken: (why: string) => void): string[] {
	const blocks = new Set<string>();
	for (const text of texts) {
		for (const root of parseCertificates(text, onBroken)) blocks.add(root.toString());
	}
	return [...blocks].sort();
}

export function notYetValid(notBefore: Date, now: Date): string {
	return `the certificate is valid from ${notBefore.toISOString()}, but the clock shows ${now.toISOString()}`;
}

function parseRoots(text: string, onBroken: (why: string) => void): X509Certificate[] {
	return mergeRoots([text], onBroken).map(pem => new X509Certificate(pem));
}

function parseCertificates(text: string, onBroken: (why: string) => void): X509Certificate[] {
	if (text.length > maxPemLength) throw invalid(`PEM text of ${text.length} characters is too long`);
	const certificates: X509Certificate[] = [];
	const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
	for (const [index, block] of blocks.entries()) {
		try {
			certificates.push(new X509Certificate(block));
		} catch {
			onBroken(`block ${index + 1} is not a certificate`); // the parser's own words ("bad base64 decode") add nothing
		}
	}
	return certificates;
}

function privateKeyOf(pem: Secret): KeyObject {
	try {
		return parseKey(pem);
	} catch (cause) {
		throw new AgentError('identity.issued_invalid', 'check certificate: the private key cannot be read', {cause});
	}
}

function spiffeIdOf(leaf: X509Certificate, expected: string | undefined): string {
	const ids = uriNames(leaf).filter(uri => uri.startsWith('spiffe://'));
	const id = ids.find(uri => uri === expected) ?? ids[0];
	if (id === undefined) throw invalid(`the certificate has no SPIFFE ID (names: ${leaf.subjectAltName ?? 'none'})`);
	return id;
}

/** Node prints names as `URI:x, DNS:y`, and as a JSON string whatever could be mistaken for a separator. */
function uriNames(leaf: X509Certificate): string[] {
	const names = leaf.subjectAltName?.matchAll(/(?:^|, )URI:(?:"((?:[^"\\]|\\.)*)"|([^,]*))/g) ?? [];
	return [...names].map(([, quoted, plain]) => (quoted === undefined ? plain! : (JSON.parse(`"${quoted}"`) as string)));
}

function isSelfSigned(certificate: X509Certificate): boolean {
	return certificate.checkIssued(certificate);
}

/** `X509Certificate.verify` checks a signature and nothing else, so CA flag, names, life and anchor are checked here. */
function verifyChain(
	leaf: X509Certificate,
	intermediates: readonly X509Certificate[],
	roots: readonly X509Certificate[],
	now: Date,
): void {
	let current = leaf;
	for (let depth = 0; depth < maxDepth; depth++) {
		if (roots.some(root => isIssuedBy(current, root, now))) return;
		const issuer = intermediates.find(candidate => candidate !== current && isIssuedBy(current, candidate, now));
		if (!issuer) break;
		current = issuer;
	}
	throw invalid(`no root of the trust bundle issued "${current.issuer.replaceAll('\n', ', ')}"`, {
		hint: 'the control plane answered with a chain and roots that do not belong together, or one of them has expired',
	});
}

function isIssuedBy(certificate: X509Certificate, issuer: X509Certificate, now: Date): boolean {
	return (
		issuer.ca && issuer.validToDate > now && certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey)
	);
}

function expired(notAfter: Date, now: Date): AgentError {
	return invalid(`the certificate expired at ${notAfter.toISOString()}, the clock shows ${now.toISOString()}`, {
		hint: 'check the clock of this machine (`timedatectl`)',
	});
}

/** Namespace and service account of a SPIFFE ID, as a path. */
function workloadOf(spiffeId: string): string {
	return spiffeId.replace(/^spiffe:\/\/[^/]*/, '');
}

function invalid(why: string, options: {hint?: string} = {}): AgentError {
	return new AgentError('identity.issued_invalid', `check certificate: ${why}`, options);
}
