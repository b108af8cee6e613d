import {AgentError} from '../../errors.ts';
import {type Finding, fail, ok, withConfig} from './types.ts';

/** With direct registration: whether the API knows us and lets us see what we need. Writes nothing, so rights to write show only when used. */
export const kubernetes = withConfig('kubernetes', async ({registration, workload}, {timeoutMs}) => {
	if (registration.mode !== 'direct') return [];
	const {createKubernetesClient} = await import('../../kubernetes/index.ts');
	const client = createKubernetesClient(registration.kubernetes, 'onramp-doctor');
	const {namespace} = workload;
	const look = async (resource: 'workloadgroups' | 'workloadentries', name: string): Promise<Finding> => {
		const what = `${resource === 'workloadgroups' ? 'WorkloadGroup' : 'WorkloadEntry'} ${namespace}/${name}`;
		try {
			await client.send({verb: 'get', resource, namespace, name}, AbortSignal.timeout(timeoutMs));
			return ok(`${what} is there`);
		} catch (error) {
			if (!(error instanceof AgentError)) return fail(`${what}: no answer within ${timeoutMs / 1000} s`, unreachable);
			const isMissing = error.code === 'kubernetes.not_found';
			if (isMissing && resource === 'workloadentries') return ok(`${what} is not there; the agent makes it`);
			return fail(error.message, error.hint ?? unreachable);
		}
	};
	const group = await look('workloadgroups', registration.group);
	// What keeps us from the one keeps us from the other.
	if (group.verdict === 'fail') return [group];
	const {workloadEntryName} = await import('../../registration/registration.ts');
	const own = workloadEntryName(registration.group, workload.addresses[0]!, workload.metadata['NETWORK'] || undefined);
	return [group, await look('workloadentries', registration.entryName ?? own)];
});

const unreachable =
	'check that the server of registration.kubernetes.server, or of the kubeconfig, can be reached from here';
