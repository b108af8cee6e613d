import {X509Certificate} from 'node:crypto';
import {readFile} from 'node:fs/promises';
import {isIP} from 'node:net';
import {rootCertificates} from 'node:tls';
import type {Endpoint, TrustAnchor} from '../config/types.ts';
import {AgentError, reasonOf} from '../errors.ts';
import type {Secret} from '../log.ts';

/** What identifies us to the control plane. */
export interface ClientCertificate {
	readonly chainPem: string;
	readonly keyPem: Secret;
	readonly notAfter: Date;
	readonly spiffeId: string;
}

/** istiod's own name; what upstream verifies when the address says `localhost`. */
const defaultServerName = 'istiod.istio-system.svc';

/** The name the control plane's certificate must carry. Source: Istio pilot/pkg/grpc/tls.go. */
export function serverNameOf({host}: Endpoint, configured: string | undefined): string {
	if (configured) return configured;
	// A bare address is in no istiod certificate; the sensible reading is "istiod, reached by address".
	return host.includes('localhost') || isIP(host) ? defaultServerName : host;
}

const certificatePattern = /-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g;

/**
 * Roots to trust a control plane by: the anchor we were given, and the trust bundle it has told us since, so that a
 * rotated root is accepted while the file on disk is still the old one.
 * @throws AgentError `control_plane.root_unusable`
 */
export async function loadRoots(anchor: TrustAnchor, learnedPem: string): Promise<Buffer> {
	if (anchor.kind === 'system') return Buffer.from([...rootCertificates, learnedPem].join('\n'));
	const pem = await readRootFile(anchor.path);
	const roots = new Set((pem + learnedPem).match(certificatePattern) ?? []);
	return Buffer.from([...roots].join('\n') + '\n');
}

async function readRootFile(path: string): Promise<string> {
	const hint = 'the bundle brings it as root-cert.pem; make a new bundle and run onramp join BUNDLE';
	let pem: string;
	try {
		pem = await readFile(path, 'utf8');
	} catch (cause) {
		throw new AgentError('control_plane.root_unusable', `read root certificate ${path}: ${reasonOf(cause)}`, {
			cause,
			hint,
		});
	}
	const blocks = pem.match(certificatePattern) ?? [];
	if (blocks.length === 0) {
		throw new AgentError('control_plane.root_unusable', `read root certificate ${path}: no PEM certificate in it`, {
			hint,
		});
	}
	for (const [i, block] of blocks.entries()) {
		try {
			new X509Certificate(block);
		} catch (cause) {
			throw new AgentError(
				'control_plane.root_unusable',
				`read root certificate ${path}: certificate ${i + 1} is damaged`,
				{cause, hint},
			);
		}
	}
	return pem;
}

/**
 * Whether to show this certificate to the control plane. istiod aborts the handshake on one it cannot verify, before
 * it looks at any token, so an expired one, or one made for another workload, locks us out rather than being ignored.
 */
export function isPresentable(
	certificate: ClientCertificate,
	workload: {namespace: string; serviceAccount: string},
	now: Date,
): boolean {
	if (certificate.notAfter.getTime() <= now.getTime()) return false;
	return certificate.spiffeId.endsWith(`/ns/${workload.namespace}/sa/${workload.serviceAccount}`);
}
