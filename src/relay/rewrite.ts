import {reasonOf} from '../errors.ts';
import {typeUrl} from '../proto/types.ts';
import {FieldReader, WireError} from '../proto/wire.ts';
import type {KnownExtensions} from './extensions.ts';
import {rewriteCluster} from './rewrite-cluster.ts';
import {rewriteListener} from './rewrite-listener.ts';
import {createPolicy, type Policy} from './rewrite-policy.ts';
import {type Removal, type Surgery, startSurgery} from './rewrite-surgery.ts';

export type {Removal};

/** Takes out of resources what this Envoy cannot load; everything else stays as it came, byte for byte. */
export interface Rewriter {
	/**
	 * @param name - of the resource, for reports
	 * @param any - an encoded `google.protobuf.Any`
	 * @returns the same buffer when there was nothing to change, or when it could not be read
	 */
	rewrite(typeUrl: string, name: string, any: Buffer): Buffer;
	/** The same for two rewriters that change the same things; '' when nothing is ever changed. */
	readonly profile: string;
}

/** A body that is not valid protobuf goes on as it is: refusing it, and saying why, is Envoy's part. */
export type OnMalformed = (resource: string, reason: string) => void;

/**
 * @param known - what Envoy said it can load; undefined when it did not say
 * @param onRemoval - called for each change of each resource, so the same thing may come thousands of times
 */
export function createRewriter(
	known: KnownExtensions | undefined,
	onRemoval: (removal: Removal) => void,
	onMalformed: OnMalformed = () => {},
): Rewriter {
	const policy = createPolicy(known);
	if (policy.profile === '') return {rewrite: (_type, _name, any) => any, profile: ''};
	return {
		profile: policy.profile,
		rewrite(type, name, any) {
			const walk = walks.get(type);
			if (!walk) return any;
			try {
				const surgery = operate(policy, type, name, any, walk);
				const result = surgery.edits.apply(any);
				for (const removal of surgery.removals) onRemoval(removal);
				return result;
			} catch (error) {
				if (!(error instanceof WireError)) throw error;
				onMalformed(name, reasonOf(error));
				return any;
			}
		},
	};
}

type Walk = (surgery: Surgery, body: FieldReader) => void;

const walks: ReadonlyMap<string, Walk> = new Map([
	[typeUrl.cluster, rewriteCluster],
	[typeUrl.listener, rewriteListener],
]);

/** Any: type_url 1, value 2. A body of another type than announced is left alone. */
function operate(policy: Policy, type: string, name: string, any: Buffer, walk: Walk): Surgery {
	const surgery = startSurgery(policy, name, any);
	const field = new FieldReader(any);
	let isAnnounced = true;
	while (field.next()) {
		if (field.number === 1) isAnnounced = field.string() === type;
		else if (field.number === 2 && isAnnounced) surgery.edits.within(field, body => walk(surgery, body));
	}
	return surgery;
}
