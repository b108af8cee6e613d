import {randomUUID} from 'node:crypto';

export type Json = null | boolean | number | string | readonly Json[] | {readonly [key: string]: Json};
export type JsonMap = {readonly [key: string]: Json};

export interface StoredObject {
	readonly apiVersion: string;
	readonly kind: string;
	readonly metadata: JsonMap & {
		readonly name: string;
		readonly namespace: string;
		readonly uid: string;
		readonly resourceVersion: string;
		readonly generation: number;
		readonly creationTimestamp: string;
	};
	readonly spec?: JsonMap;
	readonly status?: JsonMap;
}

/** `metav1.Status` of a request that was not done. */
export class Refusal extends Error {
	readonly code: number;
	readonly reason: string;
	constructor(code: number, reason: string, message: string) {
		super(message);
		this.code = code;
		this.reason = reason;
	}
}

export interface Kind {
	readonly plural: string;
	readonly kind: string;
	readonly hasStatus: boolean;
}

const group = 'networking.istio.io';
export const apiVersion = `${group}/v1`;
export const kinds: readonly Kind[] = [
	{plural: 'workloadentries', kind: 'WorkloadEntry', hasStatus: true},
	{plural: 'workloadgroups', kind: 'WorkloadGroup', hasStatus: true},
];

/** As custom resources are kept by a Kubernetes API server: what clients may write, and what is the server's own. */
export class KubernetesStore {
	readonly #objects = new Map<string, StoredObject>();
	readonly #onChange: (kind: Kind, object: StoredObject, isGone: boolean) => void;
	#revision = 1000;

	constructor(onChange: (kind: Kind, object: StoredObject, isGone: boolean) => void) {
		this.#onChange = onChange;
	}

	list({plural}: Kind): StoredObject[] {
		return [...this.#objects].filter(([key]) => key.startsWith(`${plural}/`)).map(([, object]) => object);
	}

	/** @throws Refusal NotFound */
	get(kind: Kind, namespace: string, name: string): StoredObject {
		const found = this.#objects.get(keyOf(kind, namespace, name));
		if (!found) throw new Refusal(404, 'NotFound', `${kind.plural}.${group} "${name}" not found`);
		return found;
	}

	/** @throws Refusal */
	create(kind: Kind, namespace: string, body: JsonMap): StoredObject {
		const metadata = mapOf(body['metadata']);
		const name = String(metadata['name'] ?? '');
		this.#check(kind, name, namespace, body);
		if (metadata['resourceVersion'])
			throw new Refusal(500, '', 'resourceVersion should not be set on objects to be created');
		if (this.#objects.has(keyOf(kind, namespace, name)))
			throw new Refusal(409, 'AlreadyExists', `${kind.plural}.${group} "${name}" already exists`);
		const creationTimestamp = new Date().toISOString().replace(/\.\d+/, '');
		// The status is the subresource's.
		const {status: _, ...rest} = body;
		const object = {
			...rest,
			metadata: {...metadata, name, namespace, uid: randomUUID(), generation: 1, creationTimestamp},
		} as unknown as StoredObject;
		return this.#put(kind, object);
	}

	/** PUT of the whole, or of its status. @throws Refusal */
	update(kind: Kind, namespace: string, name: string, body: JsonMap, isStatus: boolean): StoredObject {
		const version = mapOf(body['metadata'])['resourceVersion'];
		if (!version)
			throw new Refusal(
				422,
				'Invalid',
				`${kind.plural}.${group} "${name}" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update`,
			);
		return this.#write(kind, namespace, name, body, isStatus);
	}

	/** RFC 7386. @throws Refusal */
	merge(kind: Kind, namespace: string, name: string, patch: JsonMap, isStatus: boolean): StoredObject {
		const before = this.get(kind, namespace, name);
		const merged = applyMergePatch(before as unknown as Json, patch) as JsonMap;
		return this.#write(kind, namespace, name, merged, isStatus);
	}

	/** @throws Refusal */
	delete(kind: Kind, namespace: string, name: string, options: JsonMap): StoredObject {
		const found = this.get(kind, namespace, name);
		const {uid, resourceVersion} = mapOf(options['preconditions']);
		for (const [what, wanted, is] of [
			['UID', uid, found.metadata.uid],
			['ResourceVersion', resourceVersion, found.metadata.resourceVersion],
		] as const)
			if (wanted !== undefined && wanted !== is)
				throw new Refusal(
					409,
					'Conflict',
					`Operation cannot be fulfilled on ${kind.kind}.${group} "${name}": the ${what} in the precondition (${String(wanted)}) does not match the ${what} in record (${is}). The object might have been modified`,
				);
		this.#objects.delete(keyOf(kind, namespace, name));
		this.#onChange(kind, found, true);
		return found;
	}

	#write(kind: Kind, namespace: string, name: string, body: JsonMap, isStatus: boolean): StoredObject {
		const before = this.get(kind, namespace, name);
		const metadata = mapOf(body['metadata']);
		const {resourceVersion, uid} = metadata;
		if (uid !== undefined && uid !== before.metadata.uid)
			throw this.#conflict(
				kind,
				name,
				`Precondition failed: UID in precondition: ${String(uid)}, UID in object meta: ${before.metadata.uid}`,
			);
		if (resourceVersion !== undefined && resourceVersion !== before.metadata.resourceVersion)
			throw this.#conflict(
				kind,
				name,
				'the object has been modified; please apply your changes to the latest version and try again',
			);
		this.#check(kind, name, namespace, body);
		const {generation, creationTimestamp} = before.metadata;
		const isSpecOther = !isStatus && JSON.stringify(body['spec']) !== JSON.stringify(before.spec);
		const kept = {name, namespace, uid: before.metadata.uid, creationTimestamp, resourceVersion: undefined};
		const object = (
			isStatus
				? {...before, ...(body['status'] !== undefined && {status: body['status']})}
				: {
						...body,
						metadata: {...metadata, ...kept, generation: isSpecOther ? generation + 1 : generation},
						status: before.status,
					}
		) as StoredObject;
		const isSame = JSON.stringify(sorted(bare(object))) === JSON.stringify(sorted(bare(before)));
		// Writing what is there already is no change, and nobody hears of it.
		return isSame ? before : this.#put(kind, object);
	}

	#put(kind: Kind, object: StoredObject): StoredObject {
		const resourceVersion = String(++this.#revision);
		const stored = JSON.parse(
			JSON.stringify({...object, metadata: {...object.metadata, resourceVersion}}),
		) as StoredObject;
		this.#objects.set(keyOf(kind, stored.metadata.namespace, stored.metadata.name), stored);
		this.#onChange(kind, stored, false);
		return stored;
	}

	#check(kind: Kind, name: string, namespace: string, body: JsonMap): void {
		const metadata = mapOf(body['metadata']);
		if (body['apiVersion'] !== apiVersion || body['kind'] !== kind.kind)
			throw new Refusal(
				400,
				'BadRequest',
				`the API version or kind in the data does not match the expected ${apiVersion}, ${kind.kind}`,
			);
		if (metadata['name'] !== name)
			throw new Refusal(
				400,
				'BadRequest',
				`the name of the object (${String(metadata['name'])}) does not match the name on the URL (${name})`,
			);
		if (metadata['namespace'] !== undefined && metadata['namespace'] !== namespace)
			throw new Refusal(
				400,
				'BadRequest',
				'the namespace of the provided object does not match the namespace sent on the request',
			);
		if (!/^[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?$/.test(name))
			throw this.#invalid(
				kind,
				name,
				`metadata.name: Invalid value: "${name}": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'`,
			);
		for (const value of Object.values(mapOf(metadata['labels'])))
			if (!/^(?:[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?)?$/.test(String(value)))
				throw this.#invalid(
					kind,
					name,
					`metadata.labels: Invalid value: "${String(value)}": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'`,
				);
	}

	#invalid(kind: Kind, name: string, what: string): Refusal {
		return new Refusal(422, 'Invalid', `${kind.kind}.${group} "${name}" is invalid: ${what}`);
	}

	#conflict(kind: Kind, name: string, what: string): Refusal {
		return new Refusal(409, 'Conflict', `Operation cannot be fulfilled on ${kind.plural}.${group} "${name}": ${what}`);
	}
}

const keyOf = ({plural}: Kind, namespace: string, name: string): string => `${plural}/${namespace}/${name}`;

export const mapOf = (value: unknown): JsonMap =>
	typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as JsonMap) : {};

const bare = ({metadata, ...rest}: StoredObject): unknown => ({...rest, metadata: {...metadata, resourceVersion: ''}});

function sorted(value: unknown): unknown {
	if (Array.isArray(value)) return value.map(sorted);
	if (typeof value !== 'object' || value === null) return value;
	const entries = Object.entries(value).filter(([, each]) => each !== undefined);
	return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, each]) => [key, sorted(each)]));
}

/** RFC 7386, section 2: null takes away, maps are merged, all else, lists too, stands in place of what was there. */
export function applyMergePatch(target: Json, patch: Json): Json {
	if (typeof patch !== 'object' || patch === null || Array.isArray(patch)) return patch;
	const merged: Record<string, Json> = {...mapOf(target)};
	for (const [key, value] of Object.entries(patch)) {
		if (value === null) delete merged[key];
		else merged[key] = applyMergePatch(merged[key] ?? null, value);
	}
	return merged;
}
