import {AgentError, reasonOf} from '../errors.ts';
import type {Access} from './access.ts';
import type {ApiRequest} from './client.ts';

/** What the API says of a request it has not done: `metav1.Status`, or a text. */
export interface Answer {
	readonly status: number;
	readonly reason: string;
	readonly message: string;
	/** False for a page that no API server writes. */
	readonly isStatus: boolean;
}

/** Where the packages put docs/registration.yaml. */
const manifest = '/usr/share/doc/onramp/registration.yaml';

/** `patch workloadentries/status vm-10.0.0.5 in namespace vm-ns`. */
export const describeRequest = ({verb, resource, subresource, namespace, name}: ApiRequest): string =>
	`${verb} ${kindOf(resource, subresource)} ${name} in namespace ${namespace}`;

const kindOf = (resource: string, subresource: string | undefined): string =>
	subresource ? `${resource}/${subresource}` : resource;

/** Cause, place and remedy of an answer that is none of success. */
export function explainAnswer(answer: Answer, request: ApiRequest, access: Access): AgentError {
	const {status, reason, isStatus} = answer;
	const said = answer.message ? ` (${answer.message.slice(0, 300)})` : '';
	const doing = `${describeRequest(request)} at ${access.server.host}`;
	const kind = kindOf(request.resource, request.subresource);
	const fields = {status, reason};
	switch (status) {
		case 401:
			return new AgentError(
				'kubernetes.unauthenticated',
				`${doing}: the API does not know us by ${access.credentials}: expired, for another audience, or of another cluster`,
				{
					hint: 'bring a new token: kubectl create token NAME -n NAMESPACE, without --audience; that of the bundle is for istiod and does not do. It is read each time',
					fields,
				},
			);
		case 403:
			return new AgentError(
				'kubernetes.forbidden',
				`${doing}: not allowed: the verb "${request.verb}" on ${kind} is missing for ${access.credentials}${said}`,
				{
					hint: `sed s/NAMESPACE/${request.namespace}/ ${manifest} | kubectl apply -f -; in it, subjects is to name the ServiceAccount of that token`,
					fields,
				},
			);
		case 404:
			return isStatus && reason === 'NotFound' && request.verb !== 'create'
				? new AgentError('kubernetes.not_found', `${doing}: there is none`, {
						hint: `kubectl get ${request.resource} -n ${request.namespace}`,
						fields,
					})
				: new AgentError(
						'kubernetes.unsupported',
						`${doing}: this API has no ${kind} of networking.istio.io/v1${said}`,
						{
							hint: 'is registration.kubernetes.server, or that of the kubeconfig, the cluster of the mesh, and Istio there 1.22 or later?',
							fields,
						},
					);
		case 409:
			return new AgentError('kubernetes.conflict', `${doing}: somebody else has changed it meanwhile${said}`, {
				hint: 'nothing, if it passes: the agent reads it again. If not, two write to one entry: set registration.entry or give each VM its own address',
				fields,
			});
		case 400:
		case 422:
			return new AgentError('kubernetes.invalid', `${doing}: the API does not take what we wrote${said}`, {
				hint: `mend what it names, in the WorkloadGroup or in workload.labels, workload.locality, registration.entry`,
				fields,
			});
		default:
			return new AgentError('kubernetes.failed', `${doing}: HTTP status ${status}${said}`, {
				hint: `the agent tries again; look at what answers at ${access.server.host}`,
				fields,
			});
	}
}

/** A request that was not answered at all. */
export function explainFailure(cause: unknown, request: ApiRequest, access: Access): AgentError {
	if (cause instanceof AgentError) return cause;
	const said = reasonOf(cause).split('\n')[0]!;
	const doing = `${describeRequest(request)} at ${access.server.host}`;
	const code = cause instanceof Error && 'code' in cause ? String(cause.code) : '';
	if (/CERT|SELF_SIGNED|UNABLE_TO|ALTNAME/.test(code))
		return new AgentError('kubernetes.untrusted', `${doing}: its certificate is not believed (${said})`, {
			cause,
			hint: `compare with ${access.roots}: kubectl config view --raw has the root of the cluster as certificate-authority-data; for another name set tls-server-name in a kubeconfig`,
		});
	return new AgentError('kubernetes.unreachable', `${doing}: ${said}`, {
		cause,
		hint: `check that ${access.server.host} can be reached from here; the agent tries again`,
	});
}
