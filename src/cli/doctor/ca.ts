import {X509Certificate} from 'node:crypto';
import {createControlPlane} from '../../control-plane/index.ts';
import {AgentError} from '../../errors.ts';
import {renderCsr} from '../../identity/csr.ts';
import {createTokenSource} from '../../identity/index.ts';
import {generateKey} from '../../identity/key.ts';
import {Metrics, systemClock} from '../../lifecycle/index.ts';
import {silentLogger} from '../../log.ts';
import {type Finding, fail, ok, skip, withConfig} from './types.ts';

/** Asks the CA for a certificate with the token, for a key that is thrown away. Made only when asked for: it is issued for real. */
export const ca = withConfig('CA', async (config): Promise<readonly Finding[]> => {
	const {identity, workload, controlPlane} = config;
	if (identity.source.kind !== 'control-plane') return [skip(`certificates come from ${identity.source.kind}`)];
	const signal = AbortSignal.timeout(30_000);
	const {requestCertificate} = createControlPlane({
		config: controlPlane,
		workload,
		clientCertificate: () => undefined,
		token: createTokenSource(controlPlane, {audience: controlPlane.tokenAudience, clock: systemClock, signal}),
		clock: systemClock,
		log: silentLogger,
		metrics: new Metrics(),
	});
	const spiffeId = `spiffe://${workload.trustDomain}/ns/${workload.namespace}/sa/${workload.serviceAccount}`;
	const key = await generateKey(identity.keyType);
	try {
		const chain = await requestCertificate(
			{
				csrPem: renderCsr(key, spiffeId),
				lifetimeMs: identity.certificateLifetimeMs,
				certSigner: identity.certSigner,
				auth: 'any',
			},
			signal,
		);
		const {subjectAltName, validTo} = new X509Certificate(chain[0] ?? '');
		return [ok(`signs for ${subjectAltName?.replace('URI:', '')}, until ${new Date(validTo).toISOString()}`)];
	} catch (error) {
		if (!(error instanceof AgentError)) return [fail(`no usable answer: ${String(error)}`, "look at istiod's log")];
		return [fail(error.message, error.hint ?? "look at istiod's log")];
	}
});
