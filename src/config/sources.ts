import type {HostNetwork} from './host-network.ts';
import type {Environment, ParsedFlags} from './layers.ts';

/** A file that was read; `bytes` may be one more than is allowed, which then is a problem. */
export interface SourceFile {
	readonly path: string;
	readonly bytes: Uint8Array;
}

/** A bundle directory, or the places to which Istio's documents have its files copied. */
export interface BundleSource {
	/** The directory, or `/var/lib/istio`. */
	readonly path: string;
	readonly clusterEnv: SourceFile | undefined;
	readonly mesh: SourceFile | undefined;
	readonly hosts: SourceFile | undefined;
	readonly rootCertPath: string;
	readonly tokenPath: string;
	/** Whether istioctl wrote it as it is; the places of Istio hold what somebody has copied there, and perhaps edited. */
	readonly isDirectory: boolean;
}

export interface HostFacts extends HostNetwork {
	readonly hostname: string;
	/** Directory that relative paths of flags and environment start from. */
	readonly cwd: string;
	/** Where Envoy was found, or where it ought to be. */
	readonly envoyPath: string;
	/** What an earlier run has kept of {@link HostNetwork.cloudAddress}. */
	readonly keptCloudAddress?: ((stateDir: string) => string | undefined) | undefined;
}

/** Everything that configuration is made of, already read. */
export interface Sources {
	readonly flags: ParsedFlags;
	readonly env: Environment;
	readonly file: SourceFile | undefined;
	/** Settings that `onramp join` was given and has kept. */
	readonly kept: SourceFile | undefined;
	readonly bundle: BundleSource | undefined;
	/** A token that systemd has handed over (LoadCredential=istio-token). */
	readonly credentialPath?: string | undefined;
	readonly host: HostFacts;
}
