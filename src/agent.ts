import {setImmediate as nextTurn} from 'node:timers/promises';
import type {LoadedConfig} from './config/index.ts';
import {buildNode} from './control-plane/node-metadata.ts';
import {refuseLookup} from './dns/off.ts';
import {dnsAddressOf} from './dns/server-address.ts';
import {holdState} from './identity/state-dir.ts';
import {ComponentGroup, Metrics, Readiness, systemClock} from './lifecycle/index.ts';
import {startMemoryKeeper} from './lifecycle/memory.ts';
import {startSystemdNotifier} from './lifecycle/systemd.ts';
import type {Logger} from './log.ts';
import {startProxy} from './proxy/index.ts';
import {startStatusServer} from './status/index.ts';
import {version} from './version.ts';

const gates = ['identity', 'configuration', 'proxy', 'dns', 'registration', 'capture'] as const;

/**
 * Builds every part once, starts them in order, waits for the signal or for a part that ends by itself, and stops
 * them in reverse. Nothing waits for the network here: certificate, configuration and Envoy come up side by side, and
 * the gates say what is still missing.
 *
 * Envoy takes longest, and needs nothing of the mesh for its first 60 ms; so it is started first, and the code that
 * speaks to the mesh is loaded meanwhile (decision 0009).
 */
export async function runAgent(
	{config, files, warnings}: LoadedConfig,
	log: Logger,
	signal: AbortSignal,
): Promise<void> {
	const clock = systemClock;
	const metrics = new Metrics();
	const isDnsOn = config.dns.mode !== 'off';
	// Not read by an agent that leaves the rules to others.
	const capturing = config.capture.isByAgent ? await import('./capture/keeper.ts') : undefined;
	capturing?.refuseWithoutNetAdmin();
	// As Envoy is one, the rules are a unit of their own, too.
	const isByUnit = config.capture.isEnabled && !config.capture.isByAgent && config.proxy.mode === 'unit';
	const isOn: Partial<Record<string, boolean>> = {dns: isDnsOn, capture: capturing !== undefined || isByUnit};
	const readiness = new Readiness(gates.filter(name => isOn[name] ?? true));
	const base = {clock, random: Math.random, metrics};
	const logOf = (part: string) => log.child({part});
	const parts = new ComponentGroup(logOf('agent'));
	const {workload} = config;
	const {readinessPort, metricsPort} = config.proxy;
	const nodeSettings = {readinessPort, metricsPort, ...(isDnsOn && {dnsAddress: dnsAddressOf(config.dns)})};
	const node = buildNode(workload, nodeSettings);
	for (const warning of warnings) logOf('config').warn(warning);
	log.info({version, node: node.id, group: workload.group, pid: process.pid}, 'onramp starting');

	try {
		// Who may not have the directory or the sockets ends here, before anything is started.
		const status = await parts.start('status', () =>
			startStatusServer({
				...base,
				config: config.status,
				readiness,
				log: logOf('status'),
				version,
				isStopping: () => signal.aborted,
			}),
		);
		const hasState = config.identity.source.kind === 'control-plane';
		const state = hasState ? await holdState(config.identity, workload, clock) : undefined;
		// So that a command can tell whether this agent runs with what is on disk now.
		status.add('configuration', () => ({files}));
		const proxyStarts = parts.start('proxy', () =>
			startProxy(
				{
					...base,
					config: config.proxy,
					node: {...node},
					xdsSocketPath: config.relay.socketPath,
					statusAddress: config.status.address,
					statusPort: config.status.port,
					gate: readiness.gate('proxy'),
					log: logOf('proxy'),
				},
				signal,
			),
		);
		proxyStarts.catch(() => {}); // Looked at below.
		// Unless an earlier Envoy has to be asked, the spawn is done when the event loop has turned.
		await nextTurn();
		// Before what needs the network: rules of an earlier agent may lead all questions here, our own included.
		const dns = isDnsOn
			? await parts.start('dns', async () =>
					(await import('./dns/index.ts')).startDns({
						...base,
						config: config.dns,
						workload,
						gate: readiness.gate('dns'),
						log: logOf('dns'),
					}),
				)
			: undefined;
		status.add('dns', () => dns?.status() ?? {mode: 'off'});
		status.addCommand('dns-lookup', dns?.lookup ?? refuseLookup);
		const notifier = await parts.start('notify', () =>
			startSystemdNotifier({
				env: config.isNotifyEnabled ? process.env : {},
				readiness,
				// That unit waits for this one.
				isUp: () => readiness.states().every(({name, isOpen}) => isOpen || (name === 'capture' && isByUnit)),
				clock,
				log: logOf('notify'),
				statusText: () => summarize(readiness),
			}),
		);

		const {enterMesh, startMesh} = await import('./mesh.ts');
		let retryCapture = () => {};
		let captureState: () => string | undefined = () => 'in';
		const onRetry = () => retryCapture();
		const deps = {...base, config, nodeSettings, state, dns, readiness, status, parts, logOf, onRetry};
		const mesh = await startMesh(deps, signal);

		const proxy = await proxyStarts;
		// It drains with its certificates and its configuration still being served.
		parts.moveToEnd('proxy');
		status.add('proxy', proxy.status);
		status.setEnvoyScrape(async () => ({
			body: Buffer.from(await proxy.scrape()),
			contentType: 'text/plain; version=0.0.4',
		}));
		status.addCommand('drain', proxy.drain);
		status.addCommand('proxy-replace', async () => {
			await proxy.replace();
			return proxy.status();
		});
		if (capturing) {
			// Stopped after the registration, and before Envoy.
			const capture = await parts.start('capture', () =>
				capturing.startCaptureKeeper({
					config: config.capture,
					controlPlane: config.controlPlane.endpoints,
					address: workload.addresses[0]!,
					isLeft: config.proxy.onStop === 'leave',
					readiness,
					gate: readiness.gate('capture'),
					drain: async () => (proxy.status().state === 'running' ? proxy.drain() : undefined),
					clock,
					metrics,
					log: logOf('capture'),
				}),
			);
			status.add('capture', () => capture.status());
			captureState = () => capture.status().state;
			retryCapture = () => capture.retryNow();
		}
		if (isByUnit) {
			const {startOutcomeGate} = await import('./capture/outcome-gate.ts');
			const {stateDir} = config.capture;
			const capture = await parts.start('capture', () =>
				startOutcomeGate({stateDir, gate: readiness.gate('capture'), clock, log: logOf('capture')}),
			);
			status.add('capture', () => ({...capture.status()}));
			captureState = () => capture.status().state;
		}
		const gateOf = (name: string) => readiness.states().find(gate => gate.name === name)!;
		// Without rules, what peers send in mutual TLS would come to the application as it is. Rules that somebody has changed are rules.
		const trafficGate = () => {
			const state = captureState();
			const isPast = isOn['capture'] && !gateOf('capture').isOpen && state !== 'drifted';
			if (!isPast || !gateOf('proxy').isOpen) return gateOf('proxy');
			// Those of an agent before this one may be in meanwhile.
			return {...gateOf('capture'), isComing: state === undefined || state === 'waiting'};
		};
		await enterMesh({...deps, trafficGate}, mesh, proxy);
		await parts.start('memory', () => startMemoryKeeper({readiness, clock, log: logOf('memory')}));

		await parts.untilEnd(signal);
		log.info('stopping');
		await notifier.announceStop();
	} catch (error) {
		// A start that is given up because the end was asked for has not failed.
		if (!signal.aborted || error !== signal.reason) throw error;
		log.info('stopping');
	} finally {
		await parts.stop();
	}
}

/** One line for `systemctl status`: ready, or what is missing first. */
function summarize(readiness: Readiness): string {
	const closed = readiness.states().filter(({isOpen}) => !isOpen);
	return closed.length === 0 ? 'ready' : `waiting for ${closed.map(({name}) => name).join(', ')}: ${closed[0]!.reason}`;
}
