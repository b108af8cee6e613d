import {connect, type PeerCertificate} from 'node:tls';
import type {Config, Endpoint} from '../../config/index.ts';
import {formatEndpoint, loadRoots, resolveEndpoint, serverNameOf, systemLookup} from '../../control-plane/index.ts';
import {AgentError, reasonOf, systemCode} from '../../errors.ts';
import {agentsFailure, endpointsOf} from './endpoints.ts';
import {type Finding, fail, ok, skip, warn, withConfig} from './types.ts';

const soonMs = 7 * 24 * 3_600_000;

/** Whether the control plane shows a certificate that our roots have signed, for the name we ask for, valid now. */
export const tls = withConfig('TLS', async (config, patient) => {
	const {timeoutMs, now} = patient;
	if (agentsFailure(patient))
		return [skip('the rules of capture lead a look from here through Envoy, which says nothing of the control plane')];
	return Promise.all(endpointsOf(config).map(endpoint => shakeHands(config, endpoint, timeoutMs, now)));
});

async function shakeHands({controlPlane}: Config, endpoint: Endpoint, timeoutMs: number, now: Date): Promise<Finding> {
	const name = formatEndpoint(endpoint);
	if (endpoint.isPlaintext) return warn(`${name} is without TLS, and gives no identity`, 'use port 15012');
	const isCa = !controlPlane.endpoints.includes(endpoint);
	const anchor = isCa ? controlPlane.caTrustAnchor : controlPlane.trustAnchor;
	const servername = serverNameOf(endpoint, controlPlane.serverName);
	try {
		const [addresses, ca] = await Promise.all([
			resolveEndpoint(endpoint, controlPlane.hosts, systemLookup),
			loadRoots(anchor, ''),
		]);
		const seen = await handshake({host: addresses[0]!, port: endpoint.port, servername, ca, timeoutMs});
		return judge(name, servername, seen, now);
	} catch (error) {
		if (error instanceof AgentError && error.code === 'control_plane.root_unusable')
			return fail(error.message, error.hint ?? 'copy root-cert.pem again');
		if (systemCode(error) === 'ERR_NO_HANDSHAKE')
			return fail(
				`${name}: no TLS handshake within ${timeoutMs / 1000} s`,
				'something takes connections there that is not istiod, or hangs',
			);
		if (error instanceof AgentError || unreachable.has(systemCode(error) ?? ''))
			return skip(`${name} cannot be reached`);
		return fail(
			`${name}: no TLS there: ${reasonOf(error)}`,
			'is this port 15012 of istiod, or of the east-west gateway?',
		);
	}
}

/** What the check of the connection tells already. */
const unreachable = new Set(['ECONNREFUSED', 'ENETUNREACH', 'EHOSTUNREACH', 'ETIMEDOUT']);

interface Handshake {
	/** Why the certificate is not accepted, as Node says it; undefined when it is. */
	readonly refusal: string | undefined;
	readonly certificate: PeerCertificate;
}

interface Target {
	readonly host: string;
	readonly port: number;
	readonly servername: string;
	readonly ca: Buffer;
	readonly timeoutMs: number;
}

/** Goes on with a certificate that is not accepted, to be able to say whose it is; nothing is sent to its holder. */
function handshake({timeoutMs, ...target}: Target): Promise<Handshake> {
	return new Promise((resolve, reject) => {
		const socket = connect({...target, ALPNProtocols: ['h2'], rejectUnauthorized: false, timeout: timeoutMs});
		socket.once('secureConnect', () => {
			const {authorizationError} = socket;
			const refusal = authorizationError
				? String((authorizationError as {code?: string}).code ?? authorizationError)
				: undefined;
			const certificate = socket.getPeerCertificate();
			socket.destroy();
			resolve({refusal, certificate});
		});
		socket.once('timeout', () =>
			socket.destroy(Object.assign(new Error('no handshake in time'), {code: 'ERR_NO_HANDSHAKE'})),
		);
		socket.once('error', reject);
	});
}

function judge(name: string, servername: string, {refusal, certificate}: Handshake, now: Date): Finding {
	const from = new Date(certificate.valid_from);
	const to = new Date(certificate.valid_to);
	const span = `${from.toISOString()} to ${to.toISOString()}`;
	const here = `here it is ${now.toISOString()}`;
	if (now < from)
		return fail(`${name}: its certificate is valid from ${span}, ${here}`, 'the clock is behind: timedatectl');
	if (now > to)
		return fail(
			`${name}: its certificate is valid from ${span}, ${here}`,
			'the clock is ahead (timedatectl), or the mesh operator has to renew it',
		);
	if (refusal === 'ERR_TLS_CERT_ALTNAME_INVALID') {
		return fail(
			`${name}: its certificate is not for ${servername}, but for ${certificate.subjectaltname ?? 'no name'}`,
			'set control-plane.server-name to one of those, or correct the address',
		);
	}
	if (refusal !== undefined) {
		return fail(
			`${name}: its certificate is not signed by our roots (${refusal})`,
			"compare root-cert.pem with ConfigMap istio-ca-root-cert; if the mesh's root has changed, make a new bundle",
		);
	}
	if (to.getTime() - now.getTime() < soonMs)
		return warn(
			`${name}: its certificate ends at ${to.toISOString()}`,
			'istiod renews it by itself; if not, tell the mesh operator',
		);
	return ok(`${name} is ${servername}, certificate until ${to.toISOString()}`);
}
