import {isDeepStrictEqual} from 'node:util';
import type {WorkloadConfig} from '../config/types.ts';
import {AgentError} from '../errors.ts';
import type {ApiObject} from '../kubernetes/index.ts';

/** Ours: which machine keeps the entry, and its name for people. */
export const instanceAnnotation = 'onramp/instance';
export const machineAnnotation = 'onramp/machine';

const healthAnnotation = 'proxy.istio.io/health-checks-enabled';
const groupAnnotation = 'istio.io/autoRegistrationGroup';
/**
 * By these istiod knows the entries it keeps: it deletes one with the group, and takes the health of one with a controller, when
 * it holds their stream for ended (Istio pilot/pkg/autoregistration, shouldCleanupEntry).
 */
const annotationsOfIstiod = [
	groupAnnotation,
	'istio.io/workloadController',
	'istio.io/connectedAt',
	'istio.io/disconnectedAt',
] as const;

/** istiod takes the workload's name from the first annotation, which we may not have, else from this label. */
const workloadNameLabel = 'service.istio.io/workload-name';

const longestLabel = 63;

export interface EntryWish {
	/** The WorkloadGroup as the API has it. */
	readonly group: ApiObject;
	readonly workload: WorkloadConfig;
	readonly name: string;
	readonly address: string;
	/** Who we are among all machines. */
	readonly instance: string;
	/** Whether it is to have health: then it gets no traffic until we say that it is healthy. */
	readonly hasHealth: boolean;
}

/** What we write of the object. */
export interface EntryBody {
	readonly apiVersion: 'networking.istio.io/v1';
	readonly kind: 'WorkloadEntry';
	readonly metadata: {
		readonly name: string;
		readonly namespace: string;
		readonly labels: Readonly<Record<string, string>>;
		readonly annotations: Readonly<Record<string, string>>;
		readonly ownerReferences: readonly unknown[];
	};
	readonly spec: Readonly<Record<string, unknown>>;
}

type Texts = Readonly<Record<string, string>>;

/**
 * Pure. As istiod makes it of template, group and node (workloadEntryFromGroup), without what makes it istiod's own.
 * @throws AgentError `registration.service_account`
 */
export function renderEntry({group, workload, name, address, instance, hasHealth}: EntryWish): EntryBody {
	const {template = {}, metadata = {}} = (group.spec ?? {}) as {
		template?: {labels?: Texts; serviceAccount?: string; locality?: string; network?: string};
		metadata?: {labels?: Texts; annotations?: Texts};
	};
	const account = template.serviceAccount || workload.serviceAccount;
	if (account !== workload.serviceAccount)
		throw new AgentError(
			'registration.service_account',
			`register with WorkloadGroup ${workload.namespace}/${group.metadata.name}: it is for service account ${account}, and we are ${workload.serviceAccount}`,
			{hint: 'make the bundle anew from the WorkloadGroup, or mend serviceAccount in its template'},
		);
	// Locality has a field, and its slashes cannot be in a label.
	const {'istio-locality': _, ...own} = workload.labels;
	const labels: Texts = {
		...template.labels,
		...metadata.labels,
		...own,
		...(group.metadata.name.length <= longestLabel && {[workloadNameLabel]: group.metadata.name}),
	};
	const annotations: Record<string, string> = {...metadata.annotations};
	for (const key of annotationsOfIstiod) delete annotations[key];
	const network = workload.metadata['NETWORK'] || template.network;
	const locality = workload.locality || template.locality;
	return {
		apiVersion: 'networking.istio.io/v1',
		kind: 'WorkloadEntry',
		metadata: {
			name,
			namespace: workload.namespace,
			labels,
			annotations: {
				...annotations,
				...(hasHealth && {[healthAnnotation]: 'true'}),
				[instanceAnnotation]: instance,
				[machineAnnotation]: workload.name,
			},
			// Whoever deletes the group means its entries, too.
			ownerReferences: [
				{
					apiVersion: 'networking.istio.io/v1',
					kind: 'WorkloadGroup',
					name: group.metadata.name,
					uid: group.metadata.uid,
					controller: true,
				},
			],
		},
		spec: {
			...template,
			address,
			labels,
			serviceAccount: account,
			...(network && {network}),
			...(locality && {locality}),
		},
	};
}

/** Pure: the object to write over the one that is there; undefined: it is right. What others have annotated stays. */
export function mergeEntry(existing: ApiObject, wish: EntryBody): ApiObject | undefined {
	const annotations: Record<string, string> = {...existing.metadata.annotations};
	for (const key of [...annotationsOfIstiod, healthAnnotation]) delete annotations[key];
	Object.assign(annotations, wish.metadata.annotations);
	const {labels, ownerReferences} = wish.metadata;
	const merged: ApiObject = {
		...existing,
		metadata: {...existing.metadata, labels, annotations, ownerReferences},
		spec: wish.spec,
	};
	return isDeepStrictEqual(merged, existing) ? undefined : merged;
}

/** Whether the entry is ours to change. @throws AgentError `registration.entry_foreign` */
export function checkOwner(entry: ApiObject, instance: string): void {
	const {name, namespace, annotations = {}} = entry.metadata;
	const owner = annotations[instanceAnnotation];
	if (owner === instance) return;
	const {address} = (entry.spec ?? {}) as {address?: string};
	const refuse = (who: string, hint: string): never => {
		throw new AgentError(
			'registration.entry_foreign',
			`register as WorkloadEntry ${namespace}/${name}: it is there already, at ${address}, and ${who}`,
			{hint, fields: {owner}},
		);
	};
	const byHand = `kubectl delete workloadentry -n ${namespace} ${name}`;
	if (owner !== undefined)
		refuse(
			`belongs to another machine (${annotations[machineAnnotation] ?? 'without a name'}, instance ${owner})`,
			`if that machine lives: give each VM its own workload.address or registration.entry. If it is gone, or is this one with a new disk: ${byHand}`,
		);
	if (annotations[groupAnnotation] !== undefined)
		refuse(
			'istiod has made it by auto-registration',
			`nothing, if this machine was registered so until now: istiod deletes it when its grace period is over. Else: ${byHand}`,
		);
	refuse(
		'somebody has made it by hand',
		`${byHand}, or hand it over: annotate it with ${instanceAnnotation}=${instance}`,
	);
}

export interface EntryHealth {
	readonly isHealthy: boolean;
	readonly message: string;
}

/**
 * Pure: a merge patch of the status that says how we are, in the form in which istiod writes it. Conditions of others stay. It holds
 * only for the entry that was read.
 */
export function renderHealth(entry: ApiObject, {isHealthy, message}: EntryHealth, now: Date): unknown {
	const conditions = entry.status?.conditions ?? [];
	const before = conditions.find(({type}) => type === 'Healthy');
	const status = isHealthy ? 'True' : 'False';
	const at = now.toISOString();
	const condition = {
		type: 'Healthy',
		status,
		lastProbeTime: at,
		lastTransitionTime: before?.['status'] === status ? (before['lastTransitionTime'] ?? at) : at,
		...(!isHealthy && message && {message}),
	};
	return {
		metadata: {resourceVersion: entry.metadata.resourceVersion},
		status: {conditions: [...conditions.filter(({type}) => type !== 'Healthy'), condition]},
	};
}

/** Whether the entry says already how we are. */
export function saysHealth(entry: ApiObject, {isHealthy, message}: EntryHealth): boolean {
	const found = entry.status?.conditions?.find(({type}) => type === 'Healthy');
	return found?.['status'] === (isHealthy ? 'True' : 'False') && (isHealthy || (found['message'] ?? '') === message);
}
