import {join} from 'node:path';
import {byDefault, type Resolver} from './resolver.ts';
import {table} from './settings.ts';
import type {CaptureConfig, ProxyConfig, StatusConfig} from './types.ts';

export interface CaptureSurroundings {
	/** Whether questions are to be led to the agent, and where it answers them. */
	readonly isDnsCaptured: boolean;
	readonly dnsPort: number;
	readonly proxy: ProxyConfig;
	readonly status: StatusConfig;
	readonly stateDir: string;
	readonly runDir: string;
}

export function readCapture(
	resolver: Resolver,
	{isDnsCaptured, dnsPort, proxy, status, stateDir, runDir}: CaptureSurroundings,
): CaptureConfig {
	const dns = resolver.take(table.captureDns);
	const isByAgent = resolver.take(table.captureByAgent);
	resolver.note('capture.provedPath', resolver.origins.get(table.stateDir.leaf) ?? byDefault);
	resolver.note('capture.ownPorts', resolver.origins.get(table.statusPort.leaf) ?? byDefault);
	return {
		isEnabled: resolver.take(table.captureEnabled),
		isByAgent,
		backend: resolver.take(table.captureBackend),
		interception: resolver.take(table.interception),
		users: resolver.take(table.captureUsers),
		groups: resolver.take(table.captureGroups),
		outboundPort: resolver.take(table.captureOutboundPort),
		inboundPort: resolver.take(table.captureInboundPort),
		tunnelPort: resolver.take(table.captureTunnelPort),
		ownPorts: [
			{port: status.port, use: 'health and metrics of the agent'},
			{port: proxy.readinessPort, use: 'readiness of Envoy'},
			{port: proxy.metricsPort, use: 'metrics of Envoy'},
		],
		inboundPorts: resolver.take(table.inboundPorts),
		inboundExcludePorts: resolver.take(table.inboundExcludePorts),
		outboundCidrs: resolver.take(table.outboundCidrs),
		outboundExcludeCidrs: resolver.take(table.outboundExcludeCidrs),
		outboundPorts: resolver.take(table.outboundPorts),
		outboundExcludePorts: resolver.take(table.outboundExcludePorts),
		excludeInterfaces: resolver.take(table.captureExcludeInterfaces),
		outboundInterfaces: resolver.take(table.captureOutboundInterfaces),
		bridges: resolver.take(table.captureBridges),
		outboundUsers: resolver.take(table.outboundUsers),
		outboundExcludeUsers: resolver.take(table.outboundExcludeUsers),
		outboundGroups: resolver.take(table.outboundGroups),
		outboundExcludeGroups: resolver.take(table.outboundExcludeGroups),
		units: resolver.take(table.captureUnits),
		excludeUnits: resolver.take(table.captureExcludeUnits),
		loopbackCidr: resolver.take(table.captureLoopback),
		dns: dns === 'auto' ? (isDnsCaptured ? 'servers' : 'off') : dns,
		dnsPort: resolver.orElse(table.captureDnsPort, dnsPort, resolver.origins.get(table.dnsPort.leaf) ?? byDefault)
			.value,
		ipv6: resolver.take(table.captureIpv6),
		dropInvalid: resolver.take(table.captureDropInvalid),
		tproxyMark: resolver.take(table.tproxyMark),
		tproxyTable: resolver.take(table.tproxyTable),
		onAgentDown: resolver.take(table.onAgentDown),
		onDrift: resolver.take(table.onDrift),
		existingConnections: resolver.take(table.existingConnections),
		probes: resolver.take(table.captureProbes),
		waitMs: resolver.take(table.captureWait),
		// Who loads the rules reads it back, so it is not the agent's to write, unless that is the agent.
		stateDir: resolver.orElse(
			table.captureStateDir,
			isByAgent ? join(runDir, 'capture') : `${runDir}-capture`,
			byDefault,
		).value,
		provedPath: join(stateDir, 'capture.json'),
	};
}
