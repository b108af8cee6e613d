import {AgentError} from '../../errors.ts';
import {checkPortsFree} from '../../proxy/ports.ts';
import {isEnvoyServed} from './service.ts';
import {type Finding, fail, ok, skip, withConfig} from './types.ts';

/** Whether the ports that agent and Envoy will listen on are free; an agent that runs has them. */
export const ports = withConfig('ports', async ({proxy, status, dns}, {report}): Promise<readonly Finding[]> => {
	if (report) return [skip('the running agent has them')];
	const wanted: readonly (readonly [string, string, number])[] = [
		[status.address, 'status.port', status.port],
		...(dns.mode === 'off' ? [] : dns.addresses.map(address => [address, 'dns.port', dns.port] as const)),
		// An Envoy of a unit goes on without an agent, and is to keep them.
		...(proxy.mode === 'spawn' && !(await isEnvoyServed())
			? ([
					[proxy.listenAddress, 'proxy.readiness-port', proxy.readinessPort],
					[proxy.listenAddress, 'proxy.metrics-port', proxy.metricsPort],
				] as const)
			: []),
	];
	const used = wanted.filter(([, , port]) => port > 0);
	const taken = used.flatMap(([address, name, port]): Finding[] => {
		try {
			checkPortsFree(address, {[name]: port});
			return [];
		} catch (error) {
			if (!(error instanceof AgentError)) throw error;
			return [fail(error.message.replace('start envoy: ', ''), error.hint ?? `set ${name} to another port`)];
		}
	});
	return taken.length > 0 ? taken : [ok(`${[...new Set(used.map(([, , port]) => port))].join(', ')} are free`)];
});
