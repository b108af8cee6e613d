import {connect} from 'node:net';
import {formatEndpoint, resolveEndpoint, systemLookup} from '../../control-plane/index.ts';
import {AgentError, systemCode} from '../../errors.ts';
import {agentsFailure, endpointsOf} from './endpoints.ts';
import {type Finding, fail, ok, skip, withConfig} from './types.ts';

/** Whether each address of the control plane takes a connection. */
export const tcp = withConfig('connection', async (config, patient) => {
	const {timeoutMs} = patient;
	const failure = agentsFailure(patient);
	if (failure) return [fail(`the agent has none: ${failure.message}`, failure.hint ?? 'it goes on trying')];
	const each = await Promise.all(
		endpointsOf(config).map(async (endpoint): Promise<readonly Finding[]> => {
			const addresses = await resolveEndpoint(endpoint, config.controlPlane.hosts, systemLookup).catch(
				(error: unknown) => {
					if (error instanceof AgentError) return undefined;
					throw error;
				},
			);
			if (!addresses) return [skip(`${formatEndpoint(endpoint)}: it has no address`)];
			return Promise.all(addresses.map(address => tryAddress(address, endpoint.port, timeoutMs)));
		}),
	);
	return each.flat();
});

const remedies: Readonly<Record<string, string>> = {
	ECONNREFUSED: 'nobody listens there: is the east-west gateway up, and is this its address?',
	ENETUNREACH: 'this machine has no route there: ip route get ADDRESS',
	EHOSTUNREACH: 'the network says it cannot be reached: route, firewall, is the machine up?',
	ETIMEDOUT: 'packets are dropped on the way: look at firewalls and security groups, port 15012 outbound',
};

function tryAddress(host: string, port: number, timeoutMs: number): Promise<Finding> {
	const name = formatEndpoint({host, port});
	return new Promise(resolve => {
		const startedMs = performance.now();
		const socket = connect({host, port, timeout: timeoutMs});
		const end = (finding: Finding): void => {
			socket.destroy();
			resolve(finding);
		};
		socket.once('connect', () => end(ok(`${name} answers, ${Math.ceil(performance.now() - startedMs)} ms`)));
		socket.once('timeout', () => end(fail(`${name}: no answer within ${timeoutMs / 1000} s`, remedies['ETIMEDOUT']!)));
		socket.once('error', error => {
			const code = systemCode(error) ?? '';
			end(fail(`${name}: ${code || error.message}`, remedies[code] ?? 'look at address, route and firewall'));
		});
	});
}
