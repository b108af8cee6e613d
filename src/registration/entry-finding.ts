import type {OwnEndpoint} from './own-endpoints.ts';

/** What there is to judge our WorkloadEntry by. */
export interface EntryEvidence {
	/** Since when istiod has our stream, and with it the entry. */
	readonly registeredForMs: number;
	/** What was reported last; undefined: the entry has no health. */
	readonly told: {readonly isHealthy: boolean; readonly reason: string | undefined; readonly forMs: number} | undefined;
	/** Our address in the endpoints of services, as callers are told of it. */
	readonly endpoints: readonly OwnEndpoint[];
	/** Whether there were any earlier, on this registration. */
	readonly wasSeen: boolean;
	readonly expected: {
		readonly group: string;
		/** Of our entry. Up to Istio 1.29 endpoints name this one, and the group only after that. */
		readonly entryName: string;
		readonly namespace: string;
		readonly clusterId: string;
		/** Of the labels; '' = not said. */
		readonly canonicalName: string;
	};
	/** Whether callers of the service take our certificate; undefined: their configuration does not say. */
	readonly takesUs: (service: string) => boolean | undefined;
}

export interface EntryProblem {
	readonly what: string;
	readonly hint: string;
	/** Whether a new stream may mend it. */
	readonly isMendable: boolean;
}

export interface EntryFinding {
	/** `registered`, `registered, not selected by any service`, `unhealthy: …` */
	readonly summary: string;
	/** What the summary rests on, or why it cannot be known. */
	readonly proof: string;
	readonly problems: readonly EntryProblem[];
	/** False: too early to say that something is missing, or is not. */
	readonly isSettled: boolean;
}

/** istiod collects changes for 100 ms to 10 s before it pushes; what is so for longer is so. */
export const settledAfterMs = 5000;

/**
 * Pure: what callers are told of us shows whether our entry is there, and as it should be. Its address, service account, TLS mode and
 * group are in the endpoints; its network is ours if they have our address rather than a gateway's.
 */
export function judgeEntry(evidence: EntryEvidence): EntryFinding {
	const {registeredForMs, told, endpoints, wasSeen} = evidence;
	const sentTo = endpoints.filter(({isHealthy}) => isHealthy);
	const problems = findContradictions(evidence, sentTo);
	if (told && !told.isHealthy)
		return {
			summary: `unhealthy: ${told.reason ?? 'no reason given'}`,
			proof:
				sentTo.length > 0
					? `callers are still sent here: ${listServices(sentTo)}`
					: 'callers are not sent here, as an entry that is unhealthy is left out',
			problems,
			isSettled: true,
		};
	if (sentTo.length > 0)
		return {
			summary: 'registered',
			proof: `callers are sent here: ${listServices(sentTo)}`,
			problems,
			isSettled: true,
		};
	const settledMs = Math.min(registeredForMs, told?.forMs ?? Number.POSITIVE_INFINITY);
	if (settledMs < settledAfterMs)
		return {
			summary: 'registered',
			proof: 'istiod has taken the stream; not yet seen in the endpoints',
			problems,
			isSettled: false,
		};
	if (wasSeen)
		problems.push({
			what: 'our address has gone from the endpoints of all services',
			hint: `nothing, if the services or their selectors have changed; else: kubectl get workloadentry -n ${evidence.expected.namespace}`,
			isMendable: true,
		});
	return {
		summary: 'registered, not selected by any service',
		proof:
			'no service that this VM can see has our address: none selects it, or its entry is unhealthy to istiod, on another network, or hidden from us by a Sidecar or exportTo',
		problems,
		isSettled: true,
	};
}

function findContradictions(
	{told, endpoints, expected, takesUs}: EntryEvidence,
	sentTo: readonly OwnEndpoint[],
): EntryProblem[] {
	const problems: EntryProblem[] = [];
	const others = new Set(endpoints.map(({workload}) => workload).filter(workload => isOther(workload, expected)));
	for (const workload of others) {
		const [name = '', namespace = ''] = workload.split(';');
		problems.push({
			what: `our address is also that of workload ${namespace}/${name}`,
			hint: `give each machine its own address, or set workload.address; kubectl get workloadentry -n ${namespace} shows the other`,
			isMendable: false,
		});
	}
	const own = sentTo.filter(({workload}) => !others.has(workload));
	const names = new Set(own.map(({workload}) => workload.split(';')[2] ?? '').filter(Boolean));
	for (const name of names)
		if (expected.canonicalName !== '' && name !== expected.canonicalName)
			problems.push({
				what: `the entry has the canonical name "${name}", and our labels say "${expected.canonicalName}"`,
				hint: 'the entry keeps the labels it was made with: delete it, and the next stream makes it anew',
				isMendable: false,
			});
	if (own.some(({tlsMode}) => tlsMode !== 'istio'))
		problems.push({
			what: 'callers speak plaintext to this VM',
			hint: 'set serviceAccount in the template of the WorkloadGroup, and take the label security.istio.io/tlsMode away',
			isMendable: false,
		});
	const services = [...new Set(own.map(({service}) => service))];
	const refusing = services.filter(service => takesUs(service) === false);
	if (refusing.length > 0)
		problems.push({
			what: `callers of ${refusing.map(hostOf).join(', ')} do not take our certificate: it has another service account than the entry`,
			hint: 'make the bundle anew from the WorkloadGroup, or mend serviceAccount in its template',
			isMendable: false,
		});
	if (told && !told.isHealthy && told.forMs >= settledAfterMs && own.length > 0)
		problems.push({
			what: 'callers are still sent here although we report that we are unhealthy',
			hint: 'the entry is from before it had health (deleting it lets the next stream make it anew), or another machine with this address reports for it: two VMs must not share an address',
			isMendable: true,
		});
	return problems;
}

/** An entry that is neither ours nor of our group, or is of another namespace or cluster. */
function isOther(workload: string, {group, entryName, namespace, clusterId}: EntryEvidence['expected']): boolean {
	if (workload === '') return false;
	const [theirs, theirNamespace, , , cluster = ''] = workload.split(';');
	return (
		(theirs !== group && theirs !== entryName) ||
		theirNamespace !== namespace ||
		(cluster !== '' && cluster !== clusterId)
	);
}

const hostOf = (service: string): string => service.split('|')[3] ?? service;

function listServices(endpoints: readonly OwnEndpoint[]): string {
	const hosts = [...new Set(endpoints.map(({service}) => hostOf(service)))].sort();
	return `${hosts.slice(0, 3).join(', ')}${hosts.length > 3 ? ` and ${hosts.length - 3} more` : ''}`;
}
