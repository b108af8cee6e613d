import {dirname, resolve} from 'node:path';
import {byDefault, type Resolver} from './resolver.ts';
import {type Setting, table} from './settings.ts';
import type {ControlPlaneConfig, IdentityConfig, IdentitySource} from './types.ts';

export function readIdentity(resolver: Resolver, controlPlane: ControlPlaneConfig): IdentityConfig {
	return {
		source: readSource(resolver),
		keyType: resolver.take(table.keyType),
		certificateLifetimeMs: resolver.take(table.certificateLifetime),
		rotateAtShare: resolver.take(table.rotateAtShare),
		rotateJitter: resolver.take(table.rotateJitter),
		rideOutMs: resolver.take(table.rideOut),
		retryMaxMs: resolver.take(table.retryMax),
		trialDelayMs: resolver.take(table.trialDelay),
		stateDir: resolver.take(table.identityStateDir),
		outputDir: readOutputDir(resolver, controlPlane),
		certSigner: resolver.take(table.certSigner),
		outputKeyMode: resolver.take(table.outputKeyMode),
	};
}

function readSource(resolver: Resolver): IdentitySource {
	const kind = resolver.take(table.identitySource);
	const needed = (setting: Setting<string>): string => {
		const found = resolver.optional(setting);
		if (!found && !resolver.find(setting))
			resolver.findings.problem(setting.key, `is not set, and identity.source is "${kind}"`, `give --${setting.flag}`);
		return found?.value ?? '';
	};
	switch (kind) {
		case 'control-plane':
			return {kind};
		case 'files':
			return {
				kind,
				certPath: needed(table.identityCert),
				keyPath: needed(table.identityKey),
				rootPath: needed(table.identityRoot),
			};
		case 'sds':
			return {kind, socketPath: needed(table.identitySocket)};
	}
}

/**
 * Istio's start script writes certificates into the directory of the very root certificate that anchors trust in
 * the control plane; one bad answer of the CA then locks the machine out for good. When Istio's variable asks for
 * it, it is not done; when a setting of ours does, it is a problem.
 */
function readOutputDir(resolver: Resolver, controlPlane: ControlPlaneConfig): string | undefined {
	const found = resolver.optional(table.outputDir);
	const anchors = [controlPlane.trustAnchor, controlPlane.caTrustAnchor].flatMap(anchor =>
		anchor.kind === 'file' ? [anchor.path] : [],
	);
	const overwritten =
		found &&
		anchors.find(path => path === resolve(found.value, 'root-cert.pem') || dirname(path) === resolve(found.value));
	if (found && overwritten === undefined) return found.value;
	if (found?.isIstio) {
		resolver.findings.warn(
			found.place,
			`certificates are not written to ${found.value}: ${overwritten}, which anchors trust in the control plane, is in it (set identity.output-dir to another directory)`,
		);
	} else if (found) {
		resolver.findings.problem(
			found.place,
			`identity.output-dir "${found.value}" is the directory of ${overwritten}, which anchors trust in the control plane`,
			'choose another directory',
		);
	}
	resolver.note(table.outputDir.leaf, byDefault);
	return undefined;
}
