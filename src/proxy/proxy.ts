import {AgentError} from '../errors.ts';
import {never} from '../lifecycle/index.ts';
import {AdminClient} from './admin.ts';
import {renderBootstrap} from './bootstrap.ts';
import {drainEnvoy} from './drain.ts';
import {ExternalWatch} from './external.ts';
import {writePrivateFile} from './private-file.ts';
import {Supervisor} from './supervisor.ts';
import type {EnvoyProxy, ProxyDeps} from './types.ts';

/**
 * Gets an Envoy going, by the configured mode, and returns as soon as one is spawned, adopted, or known to have to
 * wait; the gate tells the rest. `finished` rejects only with what no waiting mends (`proxy.version_unsupported`).
 * @param signal - gives up starting; an Envoy that was spawned already is ended by `stop`
 */
export async function startProxy(deps: ProxyDeps, signal: AbortSignal): Promise<EnvoyProxy> {
	switch (deps.config.mode) {
		case 'spawn':
			return startSpawned(deps, signal);
		case 'unit':
			return startUnit(deps);
		case 'external':
			return startExternal(deps);
		case 'off':
			return noProxy(deps);
	}
}

async function startSpawned(deps: ProxyDeps, signal: AbortSignal): Promise<EnvoyProxy> {
	const supervisor = new Supervisor({
		...deps,
		renderBootstrap: config => bootstrapText({...deps, config}),
		addresses: addressesOf(deps.node),
	});
	await supervisor.begin(signal);
	const finished = supervisor.run();
	finished.catch(() => {}); // Noticed by whoever waits for `finished`.
	let stopped: Promise<void> | undefined;
	return {
		finished: finished.then(() => never),
		get admin() {
			return supervisor.admin;
		},
		replace: () => supervisor.replace(),
		status: () => supervisor.status(),
		scrape: () => supervisor.admin.prometheus(),
		drain: () => supervisor.drain(),
		lookNow: () => supervisor.lookNow(),
		stop: () => {
			stopped ??= supervisor.stop();
			return stopped;
		},
	};
}

async function startUnit(deps: ProxyDeps): Promise<EnvoyProxy> {
	const {UnitEnvoy} = await import('./unit.ts');
	const envoy = new UnitEnvoy({
		...deps,
		renderBootstrap: config => bootstrapText({...deps, config}),
		addresses: addressesOf(deps.node),
	});
	const running = envoy.run();
	running.catch(() => {}); // Noticed by whoever waits for `finished`.
	return {
		finished: running.then(() => never),
		get admin() {
			return envoy.admin;
		},
		replace: () => envoy.replace(),
		status: () => envoy.status(),
		scrape: () => envoy.admin.prometheus(),
		drain: () => envoy.drain(),
		lookNow: () => envoy.lookNow(),
		stop: async () => {
			envoy.stop();
			await running.catch(() => {}); // Told by `finished`.
		},
	};
}

async function startExternal(deps: ProxyDeps): Promise<EnvoyProxy> {
	const {config, clock, log, gate} = deps;
	writePrivateFile(config.bootstrapPath, bootstrapText(deps));
	const watch = new ExternalWatch({adminSocketPath: config.adminSocketPath, gate, log, clock});
	const {admin} = watch;
	const running = watch.run();
	let drained: Promise<void> | undefined;
	return {
		finished: never,
		admin,
		status: () => ({...watch.state, pid: undefined, adopted: false, restarts: 0}),
		scrape: () => admin.prometheus(),
		replace: refuseToReplace,
		drain: () => {
			watch.noteDraining();
			drained ??= drainEnvoy({admin, clock, log, ...config});
			return drained;
		},
		lookNow: () => watch.lookNow(),
		// Ending Envoy is the other supervisor's work.
		stop: () => {
			watch.stop();
			return running;
		},
	};
}

function noProxy({config, gate, clock}: ProxyDeps): EnvoyProxy {
	gate.open('no envoy is wanted');
	const since = clock.now();
	return {
		finished: never,
		admin: new AdminClient(config.adminSocketPath),
		status: () => ({state: 'off', pid: undefined, version: undefined, adopted: false, restarts: 0, since}),
		scrape: async () => '',
		replace: refuseToReplace,
		drain: async () => {},
		lookNow: () => {},
		stop: async () => {},
	};
}

async function refuseToReplace(): Promise<void> {
	throw new AgentError('proxy.replacement_failed', 'replace envoy: this agent does not run it', {
		hint: 'only with proxy.mode spawn or unit',
	});
}

/** Envoy reads JSON as well as YAML; the text is what is hashed. */
function bootstrapText(deps: ProxyDeps): string {
	return `${JSON.stringify(renderBootstrap(deps), null, '\t')}\n`;
}

function addressesOf(node: Readonly<Record<string, unknown>>): string[] {
	const {INSTANCE_IPS} = (node['metadata'] ?? {}) as {INSTANCE_IPS?: unknown};
	return typeof INSTANCE_IPS === 'string' ? INSTANCE_IPS.split(',') : [];
}
