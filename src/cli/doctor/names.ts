import {formatEndpoint, resolveEndpoint, systemLookup} from '../../control-plane/index.ts';
import {AgentError} from '../../errors.ts';
import {endpointsOf} from './endpoints.ts';
import {type Finding, fail, ok, withConfig} from './types.ts';

/** Whether the control plane has an address: in the bundle's `hosts`, else by the machine's own look-up. */
export const names = withConfig('name look-up', async config =>
	Promise.all(
		endpointsOf(config).map(async (endpoint): Promise<Finding> => {
			const {hosts} = config.controlPlane;
			try {
				const addresses = await resolveEndpoint(endpoint, hosts, systemLookup);
				const source = hosts[endpoint.host.toLowerCase()] ? "the bundle's hosts" : 'this machine';
				return ok(`${endpoint.host} is ${addresses.join(', ')}, by ${source}`);
			} catch (error) {
				if (error instanceof AgentError) return fail(error.message, error.hint ?? 'make the name resolvable');
				return fail(`look up ${formatEndpoint(endpoint)}: ${String(error)}`, 'make the name resolvable');
			}
		}),
	),
);
