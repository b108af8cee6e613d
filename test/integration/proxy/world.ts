import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import type {ProxyConfig} from '../../../src/config/types.ts';
import {Metrics, Readiness, type Running, systemClock} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {type EnvoyProxy, type ProxyDeps, startProxy} from '../../../src/proxy/index.ts';
import {startXdsSocket, type XdsService} from '../../../src/proxy/xds.ts';
import {freePorts} from '../../../src/sandbox/local-workload.ts';
import {ensureEnvoy} from '../../support/envoy.ts';
import {tinyAds} from './ads.ts';

export interface World {
	readonly folder: string;
	readonly config: ProxyConfig;
	readonly readiness: Readiness;
	readonly deps: ProxyDeps;
	startXds(services?: readonly XdsService[]): Promise<Running>;
	start(overrides?: Partial<ProxyConfig>): Promise<EnvoyProxy>;
	/** Ends all that was started, whatever state it is in. */
	end(): Promise<void>;
}

/** Everything an Envoy needs, in a folder of its own with ports of its own. */
export async function makeWorld(overrides: Partial<ProxyConfig> = {}): Promise<World> {
	const folder = await mkdtemp(join(tmpdir(), 'onramp-proxy-'));
	const [readinessPort, metricsPort] = await freePorts(2);
	const config = proxyConfig(folder, {
		binaryPath: await ensureEnvoy(),
		readinessPort: readinessPort!,
		metricsPort: metricsPort!,
		...overrides,
	});
	const readiness = new Readiness(['proxy']);
	const deps: ProxyDeps = {
		config,
		node: {id: 'sidecar~127.0.0.1~vm.ns~ns.svc.cluster.local', cluster: 'vm.ns', metadata: {INSTANCE_IPS: '127.0.0.1'}},
		xdsSocketPath: join(folder, 'xds.sock'),
		statusAddress: '127.0.0.1',
		statusPort: 0,
		gate: readiness.gate('proxy'),
		log: silentLogger,
		metrics: new Metrics(),
		clock: systemClock,
		random: () => 0.1,
	};
	const running: Running[] = [];
	return {
		folder,
		config,
		readiness,
		deps,
		async startXds(services = [tinyAds()]) {
			const socket = await startXdsSocket({path: deps.xdsSocketPath, services, log: silentLogger});
			running.push(socket);
			return socket;
		},
		async start(more = {}) {
			const proxy = await startProxy({...deps, config: {...config, ...more}}, new AbortController().signal);
			running.push(proxy);
			return proxy;
		},
		async end() {
			for (const part of running.reverse()) await part.stop();
			await rm(folder, {recursive: true, force: true});
		},
	};
}

export function proxyConfig(folder: string, overrides: Partial<ProxyConfig> = {}): ProxyConfig {
	return {
		mode: 'spawn',
		binaryPath: '/nonexistent/envoy',
		bootstrapPath: join(folder, 'envoy.json'),
		adminSocketPath: join(folder, 'admin.sock'),
		logPath: join(folder, 'envoy.log'),
		recordPath: join(folder, 'envoy-process.json'),
		logMaxBytes: 10_000_000,
		concurrency: 1,
		logLevel: 'warning',
		componentLogLevel: '',
		adsProtocol: 'delta',
		readinessPort: 0,
		metricsPort: 0,
		listenAddress: '127.0.0.1',
		drainMs: 2000,
		terminationDrainMs: 0,
		drainCeilingMs: 2000,
		replaceTimeoutMs: 20_000,
		replaceCeilingMs: 5000,
		crashBudget: 5,
		crashWindowMs: 60_000,
		restartBackoffBaseMs: 50,
		restartBackoffMaxMs: 500,
		maxDownstreamConnections: 2 ** 31 - 1,
		statsPrefixes: [],
		statsSuffixes: [],
		statsRegexes: [],
		runtimeValues: {},
		extraArguments: [],
		onStop: 'stop',
		...overrides,
	};
}

/** Polls until the condition holds; rejects with `what` after the deadline. */
export async function until<T>(
	what: string | (() => string),
	condition: () => T | Promise<T>,
	deadlineMs = 30_000,
): Promise<NonNullable<Exclude<T, false>>> {
	const startedMs = performance.now();
	for (;;) {
		const value = await condition();
		if (value) return value as NonNullable<Exclude<T, false>>;
		if (performance.now() - startedMs > deadlineMs) {
			throw new Error(`not within ${deadlineMs} ms: ${typeof what === 'string' ? what : what()}`);
		}
		await new Promise(resolve => setTimeout(resolve, 10));
	}
}
