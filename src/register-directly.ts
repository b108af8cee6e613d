import type {RegistrationConfig} from './config/index.ts';
import {createKubernetesClient} from './kubernetes/index.ts';
import type {Mesh, MeshDeps} from './mesh.ts';
import {startDirectRegistration} from './registration/direct.ts';
import {type DirectRegistration, type EntryFinding, lookAtMachine, type Wish} from './registration/index.ts';
import {openOwnEntries} from './registration/own-entries.ts';
import {withdrawnHint} from './registration/registration.ts';
import {version} from './version.ts';

/** Our WorkloadEntry written by ourselves; loaded only where that is wanted. */
export async function registerDirectly(
	{config, readiness, logOf, clock, random}: MeshDeps,
	mesh: Mesh,
	registration: Extract<RegistrationConfig, {mode: 'direct'}>,
	finding: () => EntryFinding | undefined,
): Promise<DirectRegistration> {
	const {relay, inbound} = mesh;
	const {health, proxy} = config;
	const log = logOf('registration');
	const isConnected = () => relay.status().upstream.state === 'connected';
	const proxyGate = () => readiness.states().find(({name}) => name === 'proxy')!;
	let wasReady = false;
	/** Until Envoy has been ready once, an agent before this one may have had a reason to be registered. */
	const wish = (): Wish => {
		// Health is asked first whether we are to be registered at all.
		if (!mesh.isEntered || !mesh.isLocated) return {kind: 'wait', reason: 'the agent starts'};
		const withheld = mesh.withheld();
		if (withheld !== undefined) return {kind: 'absent', reason: withheld, hint: 'onramp ready', isAsked: true};
		wasReady ||= proxyGate().isOpen;
		if (relay.status().upstream.state === 'idle')
			return {
				kind: 'absent',
				reason: 'there is no Envoy, so nobody is to be sent here',
				hint: withdrawnHint,
				isAsked: false,
			};
		if (wasReady) return {kind: 'present'};
		return {kind: 'wait', reason: `Envoy is not ready yet: ${proxyGate().reason}`};
	};
	const direct = startDirectRegistration({
		config: registration,
		client: createKubernetesClient(registration.kubernetes, `onramp/${version}`),
		own: await openOwnEntries({stateDir: registration.stateDir, marks: lookAtMachine(), log}),
		workload: mesh.workload,
		hasHealth: health.isReported,
		address: () => mesh.addresses[0]!,
		wish,
		finding,
		onLeaving: relay.hold,
		untilLeft: async signal => {
			if (isConnected()) await inbound.untilLeft(signal);
		},
		endStream: relay.leave,
		isEnded: proxy.onStop === 'stop' && (proxy.mode === 'spawn' || proxy.mode === 'off'),
		gate: readiness.gate('registration'),
		clock,
		random,
		log,
	});
	const unsubscribe = [relay.onChange(direct.look), readiness.onChange(direct.look)];
	return {
		...direct,
		stop: async () => {
			for (const each of unsubscribe) each();
			await direct.stop();
		},
	};
}
