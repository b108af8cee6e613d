import type {WorkloadConfig} from '../config/types.ts';
import {AgentError} from '../errors.ts';
import type {ApiObject, ApiRequest, KubernetesClient} from '../kubernetes/index.ts';
import {checkOwner, type EntryHealth, mergeEntry, renderEntry, renderHealth, saysHealth} from './direct-entry.ts';
import type {OwnEntries} from './own-entries.ts';

export interface PassDeps {
	readonly client: KubernetesClient;
	readonly own: OwnEntries;
	/** As it is known now: what the cloud says may come late. */
	readonly workload: () => WorkloadConfig;
	readonly group: string;
	/** Whether the entry is to have health. */
	readonly hasHealth: boolean;
	readonly now: () => Date;
}

export interface EntryTarget {
	readonly name: string;
	readonly address: string;
	/** undefined: nothing is known yet, and what the entry says stays. */
	readonly health: EntryHealth | undefined;
	/** Say it even if the entry says so already: the time of the last look is what tells a living machine from a dead one. */
	readonly isHealthDue: boolean;
}

/** Somebody wrote between our reading and our writing; so often in a row is no accident. */
const mostConflicts = 4;

/**
 * Makes the entry be there, and be right. May be repeated.
 * @returns what was done
 * @throws AgentError `kubernetes.*`, `registration.*`
 */
export async function keepEntry(
	deps: PassDeps,
	target: EntryTarget,
	signal: AbortSignal,
): Promise<'created' | 'updated' | 'kept'> {
	return untilNoConflict(() => keepOnce(deps, target, signal));
}

async function keepOnce(
	{client, own, workload: who, group: groupName, hasHealth, now}: PassDeps,
	{name, address, health, isHealthDue}: EntryTarget,
	signal: AbortSignal,
): Promise<'created' | 'updated' | 'kept'> {
	const workload = who();
	const {namespace} = workload;
	const at = {resource: 'workloadentries', namespace, name} as const;
	const group = await find(client, {verb: 'get', resource: 'workloadgroups', namespace, name: groupName}, signal);
	if (!group)
		throw new AgentError(
			'registration.group_missing',
			`register: WorkloadGroup ${namespace}/${groupName} does not exist`,
			{
				hint: `kubectl -n ${namespace} get workloadgroup; create ${groupName}, or set workload.group. The agent keeps asking`,
			},
		);
	const existing = await find(client, {verb: 'get', ...at}, signal);
	if (existing) checkOwner(existing, own.instance);
	const wish = renderEntry({group, workload, name, address, instance: own.instance, hasHealth});
	await own.add(`${namespace}/${name}`);
	const changed = existing && mergeEntry(existing, wish);
	let entry = existing;
	if (!entry) entry = await client.send({verb: 'create', ...at, body: wish}, signal);
	else if (changed) entry = await client.send({verb: 'update', ...at, body: changed}, signal);
	if (hasHealth && health && (isHealthDue || !saysHealth(entry, health))) {
		const body = renderHealth(entry, health, now());
		await client.send({verb: 'patch', subresource: 'status', ...at, body}, signal);
	}
	return existing ? (changed ? 'updated' : 'kept') : 'created';
}

/**
 * Takes an entry of ours away; one that is not ours stays, and is forgotten. May be repeated.
 * @param entry - `NAMESPACE/NAME`
 * @throws AgentError `kubernetes.*`
 */
export async function removeEntry({client, own}: PassDeps, entry: string, signal: AbortSignal): Promise<void> {
	const [namespace = '', name = ''] = entry.split('/');
	const at = {resource: 'workloadentries', namespace, name} as const;
	await untilNoConflict(async () => {
		const existing = await find(client, {verb: 'get', ...at}, signal);
		if (!existing || !isOwn(existing, own)) return;
		const {uid, resourceVersion} = existing.metadata;
		// Only what was looked at: another machine may have taken the name meanwhile.
		const body = {apiVersion: 'v1', kind: 'DeleteOptions', preconditions: {uid, resourceVersion}};
		await find(client, {verb: 'delete', ...at, body}, signal);
	});
	await own.remove(entry);
}

function isOwn(entry: ApiObject, own: OwnEntries): boolean {
	try {
		checkOwner(entry, own.instance);
		return true;
	} catch {
		// Whose it is, is told when we want it.
		return false;
	}
}

async function untilNoConflict<T>(act: () => Promise<T>): Promise<T> {
	for (let i = 1; ; i++) {
		try {
			return await act();
		} catch (error) {
			if (!(error instanceof AgentError) || error.code !== 'kubernetes.conflict' || i >= mostConflicts) throw error;
		}
	}
}

async function find(
	client: KubernetesClient,
	request: ApiRequest,
	signal: AbortSignal,
): Promise<ApiObject | undefined> {
	try {
		return await client.send(request, signal);
	} catch (error) {
		if (error instanceof AgentError && error.code === 'kubernetes.not_found') return undefined;
		throw error;
	}
}
