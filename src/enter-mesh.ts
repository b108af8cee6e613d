import {lookAtNetwork} from './config/index.ts';
import type {Health, TrafficGate} from './health/index.ts';
import {keepWord, startHealth} from './health/index.ts';
import type {Running} from './lifecycle/index.ts';
import {lookForAddresses} from './locate.ts';
import type {Mesh, MeshDeps} from './mesh.ts';
import {typeUrl} from './proto/types.ts';
import type {EnvoyProxy} from './proxy/index.ts';
import {
	type DirectRegistration,
	keepMachine,
	lookAtMachine,
	type Registration,
	type SelfCheck,
	startAddressWatch,
	startCopyCheck,
	startRegistration,
	startSelfCheck,
} from './registration/index.ts';

export interface EnterDeps extends MeshDeps {
	/** Open while what comes to this machine reaches Envoy. */
	readonly trafficGate: () => TrafficGate;
}

/** Enters the mesh. Last in, first out: an orderly stop leaves it before Envoy drains. */
export async function enterMesh(deps: EnterDeps, mesh: Mesh, proxy: EnvoyProxy): Promise<void> {
	const {config, readiness, status, parts, logOf, clock} = deps;
	const {relay} = mesh;
	// What Envoy has just taken may have made it ready.
	relay.onChange(proxy.lookNow);
	let selfCheck: SelfCheck | undefined;
	const finding = () => selfCheck?.finding();
	let direct: DirectRegistration | undefined;
	const registration = await parts.start('registration', async () => {
		if (config.registration.mode === 'direct') {
			const {registerDirectly} = await import('./register-directly.ts');
			direct = await registerDirectly(deps, mesh, config.registration, finding);
			return direct;
		}
		return startRegistration({
			clock,
			workload: config.workload,
			address: () => mesh.addresses[0]!,
			upstream: () => relay.status().upstream,
			savedAt: () => relay.status().servingSaved,
			onUpstreamChange: relay.onChange,
			withheld: () => mesh.withheld(),
			finding,
			withdraw: relay.leave,
			gate: readiness.gate('registration'),
			log: logOf('registration'),
		});
	});
	if (direct) {
		const {report, checkNow} = direct;
		mesh.report = report;
		mesh.retry = checkNow;
	}
	status.add('registration', registration.status);
	const onChange = () => {
		registration.look();
		selfCheck?.look();
	};
	// Stopped before registration: that we go is said while there is a stream to say it on.
	const health = await parts.start('health', () => startHealthOf(deps, mesh, onChange));
	mesh.withheld = health.withheld;
	selfCheck = await parts.start('self-check', async () => startSelfCheckOf(deps, mesh, registration, health));
	registration.look();
	const {say, leave} = health;
	status.add('health', health.status);
	status.addCommand('ready', input => say('ready', input));
	status.addCommand('unready', input => say('unready', input));
	// The first half of a stop, for a service whose rules and Envoy are other units.
	status.addCommand('leave', async () => {
		await leave();
		await registration.leave();
		await proxy.drain();
	});
	relay.begin();
	mesh.isEntered = true;
	registration.look();
	// With keys from elsewhere, whose they are is not our business.
	if (deps.state) {
		const machine = await parts.start('machine', () =>
			startCopyCheck({
				record: keepMachine(config.stateDir),
				marks: lookAtMachine,
				renewKey: mesh.rotateNow,
				clock,
				log: logOf('registration'),
			}),
		);
		status.add('machine', () => (machine.status().isCopy ? machine.status() : {}));
	}
	if (!config.address.isFixed)
		await parts.start('address', () => startAddressWatchOf(deps, mesh, {health, registration, selfCheck: selfCheck!}));
}

function startHealthOf(deps: EnterDeps, mesh: Mesh, onChange: () => void): Promise<Health> {
	const {relay, inbound} = mesh;
	const {config, readiness, logOf, clock, random, metrics} = deps;
	const {workload, proxy, registration} = config;
	const isDirect = registration.mode === 'direct';
	const isConnected = () => relay.status().upstream.state === 'connected';
	return startHealth({
		config: config.health,
		hasEntry: workload.group !== undefined || isDirect,
		trafficGate: deps.trafficGate,
		onGateChange: listener => readiness.onChange(listener),
		report: mesh.report,
		// It is the entry that says so, and looks at each change.
		onWithheld: isDirect ? () => {} : relay.reconnect,
		onChange,
		onConnected: listener => {
			// What is written into the entry stays there, whoever istiod is.
			if (isDirect) return () => {};
			let wasConnected = isConnected();
			return relay.onChange(() => {
				if (isConnected() && !wasConnected) listener();
				wasConnected = isConnected();
			});
		},
		untilLeft: async signal => {
			if (isConnected()) await inbound.untilLeft(signal);
		},
		onLeaving: relay.hold,
		isEnded: proxy.onStop === 'stop' && (proxy.mode === 'spawn' || proxy.mode === 'off'),
		keeper: keepWord(config.health.stateDir),
		startProbers: async onResult => {
			const {probes, defaultHost} = config.health;
			if (probes.length === 0) return [];
			// Programs and protocols that a machine without probes need not load.
			const {startProber} = await import('./health/prober.ts');
			const host = () => (defaultHost === 'localhost' ? 'localhost' : mesh.addresses[0]!);
			return probes.map(probe =>
				startProber({probe, host, clock, onResult: outcome => onResult(probe.name, outcome === undefined)}),
			);
		},
		clock,
		random,
		metrics,
		log: logOf('health'),
	});
}

function startSelfCheckOf(deps: MeshDeps, mesh: Mesh, registration: Registration, health: Health): SelfCheck {
	const {config, logOf, clock, random} = deps;
	const {namespace, clusterId, labels} = config.workload;
	const group = config.registration.mode === 'direct' ? config.registration.group : config.workload.group;
	const {relay, inbound} = mesh;
	const takesUs = (service: string): boolean | undefined => {
		const cluster = relay.find(typeUrl.cluster, service);
		const own = mesh.spiffeId();
		if (own === undefined || !cluster?.includes('spiffe://')) return undefined;
		return cluster.includes(own);
	};
	const check = startSelfCheck({
		evidence: () => {
			const registeredForMs = registration.registeredForMs();
			if (group === undefined || registeredForMs === undefined) return undefined;
			return {
				registeredForMs,
				told: health.told(),
				endpoints: inbound.endpoints(),
				expected: {
					group,
					entryName: registration.entry()?.split('/')[1] ?? '',
					namespace,
					clusterId,
					canonicalName: labels['service.istio.io/canonical-name'] ?? '',
				},
				takesUs,
			};
		},
		reconnect: () => {
			mesh.retry();
			mesh.mend();
		},
		onFinding: registration.look,
		clock,
		random,
		log: logOf('registration'),
	});
	inbound.onChange(check.look);
	relay.onChange(check.look);
	return check;
}

/** istiod needs some 100 ms to tell callers. */
const partingMs = 500;

interface Members {
	readonly health: Health;
	readonly registration: Registration;
	readonly selfCheck: SelfCheck;
}

function startAddressWatchOf(deps: MeshDeps, mesh: Mesh, {health, registration, selfCheck}: Members): Running {
	const {config, clock, logOf} = deps;
	const {relay, inbound} = mesh;
	return startAddressWatch({
		look: () => {
			const network = lookAtNetwork();
			const {towards} = config.address;
			// Off the network, no other address is of use.
			const isOff = towards.length > 0 && !towards.some(destination => network.sourceOf?.(destination));
			return isOff ? mesh.addresses : lookForAddresses(config, mesh.cloud);
		},
		current: () => mesh.addresses,
		onChange: async addresses => {
			// istiod keeps the old entry for its grace period, and nobody is there any more.
			if (health.told()?.isHealthy) {
				mesh.report({isHealthy: false, message: `the address of this machine is ${addresses[0]} now`});
				await clock.sleep(partingMs);
			}
			mesh.addresses = addresses;
			inbound.forget();
			relay.reconnect();
			health.tellAgain();
			selfCheck.forget();
			registration.look();
		},
		clock,
		log: logOf('registration'),
	});
}
