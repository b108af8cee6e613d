import type {LoadedConfig} from './config/index.ts';
import {buildNode, createControlPlane, encodeNode} from './control-plane/index.ts';
import {type NameTable, parseNameTable} from './dns/index.ts';
import {type Identity, startIdentity} from './identity/index.ts';
import {ComponentGroup, Metrics, Readiness, systemClock} from './lifecycle/index.ts';
import {startMemoryKeeper} from './lifecycle/memory.ts';
import {startSystemdNotifier} from './lifecycle/systemd.ts';
import type {Logger} from './log.ts';
import {startProxy, startSds, startXdsSocket} from './proxy/index.ts';
import {startRegistration} from './registration/index.ts';
import {startRelay} from './relay/index.ts';
import {startStatusServer} from './status/index.ts';
import {version} from './version.ts';

const gates = ['identity', 'configuration', 'proxy', 'registration'] as const;

/**
 * Builds every part once, starts them in order, waits for the signal or for a part that ends by itself, and stops
 * them in reverse. Nothing waits for the network here: certificate, configuration and Envoy come up side by side, and
 * the gates say what is still missing.
 */
export async function runAgent(
	{config, files, warnings}: LoadedConfig,
	log: Logger,
	signal: AbortSignal,
): Promise<void> {
	const clock = systemClock;
	const random = Math.random;
	const metrics = new Metrics();
	const readiness = new Readiness(gates);
	const base = {clock, random, metrics};
	const logOf = (part: string) => log.child({part});
	const parts = new ComponentGroup(logOf('agent'));
	const {workload} = config;
	const node = buildNode(workload, {readinessPort: config.proxy.readinessPort, metricsPort: config.proxy.metricsPort});
	for (const warning of warnings) logOf('config').warn(warning);
	log.info({version, node: node.id, group: workload.group, pid: process.pid}, 'onramp starting');

	try {
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
		// So that a command can tell whether this agent runs with what is on disk now.
		status.add('configuration', () => ({files}));
		const notifier = await parts.start('notify', () =>
			startSystemdNotifier({
				env: config.isNotifyEnabled ? process.env : {},
				readiness,
				clock,
				log: logOf('notify'),
				statusText: () => summarize(readiness),
			}),
		);

		// The control plane shows the certificate that identity got from the control plane; the first time there is none.
		let identity: Identity | undefined;
		const controlPlane = createControlPlane({
			...base,
			config: config.controlPlane,
			workload,
			clientCertificate: () => identity?.current(),
			log: logOf('control-plane'),
		});
		identity = await parts.start('identity', () =>
			startIdentity(
				{
					...base,
					config: config.identity,
					workload,
					tokenPath: config.controlPlane.tokenPath,
					tokenAudience: config.controlPlane.tokenAudience,
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

		let names: NameTable = new Map();
		status.add('dns', () => ({names: names.size}));
		const relay = await parts.start('relay', () =>
			startRelay({
				...base,
				config: config.relay,
				openAdsStream: controlPlane.openAdsStream,
				backoff: {baseMs: config.controlPlane.backoffBaseMs, maxMs: config.controlPlane.backoffMaxMs},
				node: encodeNode(node, version),
				onNameTable: table => {
					names = parseNameTable(table);
				},
				onTrustBundle: setAdditionalRoots,
				gate: readiness.gate('configuration'),
				log: logOf('relay'),
			}),
		);
		status.add('relay', relay.status);
		status.addCommand('retry', async () => {
			retryNow();
			relay.retryNow();
		});
		// A stream refused for want of a certificate need not wait out its backoff once there is one.
		onChange(() => relay.retryNow());

		const sds = await parts.start('sds', () => startSds({source: {current, onChange}, log: logOf('sds')}));
		await parts.start('xds-socket', () =>
			startXdsSocket({path: config.relay.socketPath, services: [relay.service, sds], log: logOf('xds')}),
		);

		const proxy = await parts.start('proxy', () =>
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
		status.add('proxy', proxy.status);
		status.setEnvoyScrape(async () => ({
			body: Buffer.from(await proxy.scrape()),
			contentType: 'text/plain; version=0.0.4',
		}));
		status.addCommand('drain', proxy.drain);

		// Last in, first out: an orderly stop leaves the mesh before Envoy drains.
		const registration = await parts.start('registration', () =>
			startRegistration({
				clock,
				workload,
				upstream: () => relay.status().upstream,
				onUpstreamChange: relay.onChange,
				withdraw: relay.leave,
				gate: readiness.gate('registration'),
				log: logOf('registration'),
			}),
		);
		status.add('registration', registration.status);
		relay.begin();
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
