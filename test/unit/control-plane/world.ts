import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import type {ExecutionContext} from 'ava';
import type {ControlPlaneConfig, Endpoint, WorkloadConfig} from '../../../src/config/types.ts';
import {type ControlPlane, type ControlPlaneDeps, createControlPlane} from '../../../src/control-plane/index.ts';
import {createTokenSource} from '../../../src/identity/index.ts';
import {Metrics, systemClock} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';

export const workload: WorkloadConfig = {
	trustDomain: 'cluster.local',
	namespace: 'bar',
	serviceAccount: 'vm',
	name: 'vm1',
	clusterId: 'Kubernetes',
	addresses: ['127.0.1.9'],
	group: undefined,
	domain: 'bar.svc.cluster.local',
	serviceCluster: 'vm.bar',
	labels: {},
	locality: '',
	metadata: {},
	proxyConfig: {},
	istioVersion: '1.31.0',
	isDnsCaptured: false,
};

export interface Setting {
	readonly endpoints: readonly Endpoint[];
	/** Of the root certificate's file. */
	readonly rootPem: string;
	/** Of the token's file; without it there is no file. */
	readonly token?: string;
	readonly config?: Partial<ControlPlaneConfig>;
	readonly deps?: Partial<ControlPlaneDeps>;
}

export const at = (port: number, host = '127.0.0.1'): Endpoint => ({host, port, isPlaintext: false});

/** The agent's side, with its files in a directory of its own. */
export async function makeControlPlane(t: ExecutionContext, setting: Setting): Promise<ControlPlane> {
	const {endpoints, rootPem, token, config, deps} = setting;
	const directory = await mkdtemp(join(tmpdir(), 'onramp-control-plane-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	const [tokenPath, rootPath] = [join(directory, 'token'), join(directory, 'roots.pem')];
	if (token !== undefined) await writeFile(tokenPath, token);
	await writeFile(rootPath, rootPem);
	const trustAnchor = {kind: 'file', path: rootPath} as const;
	const signal = new AbortController().signal;
	return createControlPlane({
		token: createTokenSource({tokenPath}, {audience: 'istio-ca', clock: deps?.clock ?? systemClock, signal}),
		log: silentLogger,
		metrics: new Metrics(),
		clock: systemClock,
		config: {
			endpoints,
			caEndpoints: endpoints,
			serverName: undefined,
			trustAnchor,
			caTrustAnchor: trustAnchor,
			hosts: {},
			xdsHeaders: {},
			caHeaders: {},
			tokenPath,
			credentialPath: undefined,
			tokenProgram: [],
			tokenAudience: 'istio-ca',
			connectTimeoutMs: 5000,
			keepaliveMs: 30_000,
			keepaliveTimeoutMs: 10_000,
			backoffBaseMs: 10,
			backoffMaxMs: 10,
			...config,
		},
		workload,
		clientCertificate: () => undefined,
		...deps,
	});
}
