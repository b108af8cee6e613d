import {type Cloud, platformOf} from './cloud/index.ts';
import type {Config, WorkloadConfig} from './config/index.ts';
import {buildNode, createControlPlane, encodeNode, type NodeSettings} from './control-plane/index.ts';
import type {Dns} from './dns/index.ts';
import {createTokenSource, type Identity, startIdentity} from './identity/index.ts';
import type {HeldState} from './identity/state-dir.ts';
import type {Clock, ComponentGroup, Metrics, Readiness} from './lifecycle/index.ts';
import {startCloudOf, untilLocated} from './locate.ts';
import type {Logger} from './log.ts';
import {startSds, startXdsSocket} from './proxy/xds.ts';
import {limitReconnects, type OwnInbound, startOwnInbound} from './registration/index.ts';
import {type HealthReport, type Relay, startRelay} from './relay/index.ts';
import type {StatusServer} from './status/index.ts';
import {version} from './version.ts';

export interface MeshDeps {
	readonly config: Config;
	/** What the node says besides who the workload is. */
	readonly nodeSettings: NodeSettings;
	/** Where certificates are kept, if they are. */
	readonly state: HeldState | undefined;
	/** Takes the name table; undefined when names are not answered here. */
	readonly dns: Dns | undefined;
	readonly readiness: Readiness;
	readonly status: StatusServer;
	readonly parts: ComponentGroup;
	readonly logOf: (part: string) => Logger;
	readonly clock: Clock;
	readonly random: () => number;
	readonly metrics: Metrics;
	/** Somebody asks that nothing waits any longer. */
	readonly onRetry: () => void;
}

export interface Mesh {
	readonly relay: Relay;
	readonly inbound: OwnInbound;
	/** Of the certificate that is served; undefined before the first. */
	readonly spiffeId: () => string | undefined;
	readonly rotateNow: () => Promise<unknown>;
	/** Opens a new stream because something is wrong with our entry; not without end. */
	readonly mend: () => void;
	/** What the cloud's metadata service says of this machine; undefined where none is asked. */
	readonly cloud: Cloud | undefined;
	/** The first one names our WorkloadEntry; the next stream is opened with them. */
	addresses: readonly string[];
	/** Who we are, as far as it is known now. */
	readonly workload: () => WorkloadConfig;
	/** Puts our health where the mesh sees it. */
	report: (report: HealthReport) => void;
	/** Has what is waiting to be registered tried at once. */
	retry: () => void;
	/** Our health has been asked whether we are to be registered. */
	isEntered: boolean;
	/** What the cloud says has been waited for. */
	isLocated: boolean;
	/** Why the next stream is to register nothing; undefined = it registers us. */
	withheld: () => string | undefined;
}

export {enterMesh} from './enter-mesh.ts';

/** The parts that speak to the control plane and to Envoy: certificate, configuration, secrets. */
export async function startMesh(deps: MeshDeps, signal: AbortSignal): Promise<Mesh> {
	const {config, nodeSettings, state, dns, readiness, status, parts, logOf, clock, random, metrics, onRetry} = deps;
	const base = {clock, random, metrics};
	const {workload} = config;
	// The control plane shows the certificate that identity got from the control plane; the first time there is none.
	let identity: Identity | undefined;
	const {tokenAudience: audience} = config.controlPlane;
	const token = createTokenSource(config.controlPlane, {audience, clock, signal});
	const controlPlane = createControlPlane({
		...base,
		config: config.controlPlane,
		workload,
		clientCertificate: () => identity?.current(),
		token,
		learnedRoots: () => identity?.trustBundlePem() ?? '',
		log: logOf('control-plane'),
	});
	identity = await parts.start('identity', () =>
		startIdentity(
			{
				...base,
				config: config.identity,
				workload,
				state,
				token,
				requestCertificate: controlPlane.requestCertificate,
				log: logOf('identity'),
				gate: readiness.gate('identity'),
			},
			signal,
		),
	);
	const {current, onChange, setAdditionalRoots, rotateNow, retryNow} = identity;
	status.add('identity', identity.status);
	status.addCommand('rotate', rotateNow);

	// It may answer before all is made.
	let made: Mesh | undefined;
	const cloud = await startCloudOf(deps, () => made?.retry());
	const located = untilLocated(config, cloud, signal);
	const mend = limitReconnects(() => relay.reconnect(), clock, logOf('registration'));
	const inbound = await parts.start('inbound', async () =>
		startOwnInbound({
			address: () => mesh.addresses[0]!,
			reconnect: mend,
			clock,
			random,
			log: logOf('registration'),
		}),
	);
	status.add('inbound', inbound.status);
	const relay: Relay = await parts.start('relay', () =>
		startRelay({
			...base,
			config: config.relay,
			openAdsStream: async (protocol, giveUp) => {
				// What it says of us is part of our entry.
				await located;
				return controlPlane.openAdsStream(protocol, giveUp);
			},
			backoff: {baseMs: config.controlPlane.backoffBaseMs, maxMs: config.controlPlane.backoffMaxMs},
			node: () => {
				// istiod registers whoever names a group.
				const group = mesh.withheld() === undefined ? workload.group : undefined;
				const facts = mesh.cloud?.current();
				const settings = {...nodeSettings, ...(facts && {platform: platformOf(facts)})};
				return encodeNode(buildNode({...mesh.workload(), group}, settings), version);
			},
			owner: ownerOf(workload),
			onNameTable: table => dns?.setNameTable(table),
			onTrustBundle: setAdditionalRoots,
			onResponse: inbound.see,
			gate: readiness.gate('configuration'),
			log: logOf('relay'),
		}),
	);
	status.add('relay', relay.status);
	status.addCommand('retry', async () => {
		retryNow();
		relay.retryNow();
		mesh.retry();
		onRetry();
	});
	// A stream refused for want of a certificate need not wait out its backoff once there is one.
	onChange(() => relay.retryNow());

	const sds = await parts.start('sds', () => startSds({source: {current, onChange}, log: logOf('sds')}));
	status.add('secrets', sds.status);
	await parts.start('xds-socket', () =>
		startXdsSocket({path: config.relay.socketPath, services: [relay.service, sds], log: logOf('xds')}),
	);
	const spiffeId = () => current()?.spiffeId;
	const mesh: Mesh = {
		relay,
		inbound,
		spiffeId,
		rotateNow,
		mend,
		cloud,
		addresses: workload.addresses,
		workload: () => ({
			...workload,
			addresses: mesh.addresses,
			locality: workload.locality || cloud?.current()?.locality || '',
		}),
		report: relay.setHealth,
		retry: () => {},
		isEntered: false,
		isLocated: false,
		withheld: () => undefined,
	};
	made = mesh;
	located.then(addresses => {
		mesh.addresses = addresses;
		mesh.isLocated = true;
		mesh.retry();
	});
	return mesh;
}

/** Not the address: it may change over a reboot, and what is saved is good all the same. */
function ownerOf({name, namespace, serviceAccount, trustDomain, clusterId, metadata}: WorkloadConfig): string {
	const network = metadata['NETWORK'] ? ` on network ${metadata['NETWORK']}` : '';
	return `${name} as ${trustDomain}/ns/${namespace}/sa/${serviceAccount} in ${clusterId}${network}`;
}
