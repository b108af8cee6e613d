import {FieldReader} from '../proto/wire.ts';
import {type Category, messageName} from './extensions.ts';
import {Edits} from './rewrite-edits.ts';
import type {Policy} from './rewrite-policy.ts';

/** Something that was changed in a resource because this Envoy cannot load it. */
export interface Removal {
	readonly resource: string;
	/** Envoy's category, or `alpn`. */
	readonly category: string;
	readonly name: string;
	/** Full name of the configuration's message; '' for ALPN values and object factories. */
	readonly type: string;
	/** What is lost by it, in words for the status page. */
	readonly lost: string;
}

/** One resource on the table: what is changed in it and why. */
export interface Surgery {
	readonly policy: Policy;
	readonly resource: string;
	readonly edits: Edits;
	readonly removals: Removal[];
	/** Whether `istio-peer-exchange` occurs at all: looking for the text is cheaper than walking to where it may be. */
	readonly hasPeerExchange: boolean;
}

/**
 * With this ALPN value negotiated, an Istio proxy writes a metadata preamble into TCP streams. Without the filter that
 * takes it out again, the application would get those bytes, so it must not be offered.
 */
export const peerExchange = 'istio-peer-exchange';
const peerExchangeBytes = Buffer.from(peerExchange);

export function startSurgery(policy: Policy, resource: string, any: Buffer): Surgery {
	return {policy, resource, edits: new Edits(), removals: [], hasPeerExchange: any.includes(peerExchangeBytes)};
}

/** What an Any holds. */
export interface Held {
	/** Message name as it stands in the Any. */
	readonly type: string;
	/** Message name Envoy resolves by: the inner one of a TypedStruct, else `type`. */
	readonly realType: string;
}

export const nothingHeld: Held = {type: '', realType: ''};

/** Reads the Any in the current field. */
export function readAny(field: FieldReader): Held {
	const any = field.message();
	let type = '';
	let start = 0;
	let end = 0;
	while (any.next()) {
		if (any.number === 1) type = typeName(any);
		else if (any.number === 2) {
			any.message();
			start = any.valueStart;
			end = any.end;
		}
	}
	return {type, realType: realTypeOf(type, new FieldReader(field.buffer, start, end))};
}

function realTypeOf(type: string, value: FieldReader): string {
	switch (type) {
		case 'udpa.type.v1.TypedStruct':
		case 'xds.type.v3.TypedStruct':
			return innerType(value);
		case 'envoy.extensions.common.matching.v3.ExtensionWithMatcher':
			return matchedType(value) || type;
		default:
			return type;
	}
}

/** TypedStruct: type_url 1, value 2. The wrapper itself is never unknown, so without an inner type nothing is. */
function innerType(field: FieldReader): string {
	let type = '';
	while (field.next()) if (field.number === 1) type = typeName(field);
	return type;
}

/** ExtensionWithMatcher: extension_config 2 is TypedExtensionConfig: typed_config 2. */
function matchedType(field: FieldReader): string {
	let type = '';
	while (field.next()) {
		if (field.number !== 2) continue;
		const extension = field.message();
		while (extension.next()) {
			if (extension.number !== 2) continue;
			// One level only: a matcher in a matcher does not occur, and recursion would be the sender's to steer.
			const any = extension.message();
			let url = '';
			let value: FieldReader | undefined;
			while (any.next()) {
				if (any.number === 1) url = typeName(any);
				else if (any.number === 2) value = any.message();
			}
			type = url.endsWith('.TypedStruct') && value ? innerType(value) : url;
		}
	}
	return type;
}

/** Message name of a type URL; ASCII by definition, which reads faster as latin1. */
export function typeName(field: FieldReader): string {
	field.message();
	return messageName(field.buffer.toString('latin1', field.valueStart, field.end));
}

/** Walks into the value of an Any of the current field. */
export function withinAny(surgery: Surgery, field: FieldReader, walk: (value: FieldReader) => void): void {
	surgery.edits.within(field, any => {
		while (any.next()) if (any.number === 2) surgery.edits.within(any, walk);
	});
}

/** Is there another field of this number after the current one? */
export function hasLater(field: FieldReader): boolean {
	const rest = new FieldReader(field.buffer, field.end, field.messageEnd);
	while (rest.next()) if (rest.number === field.number) return true;
	return false;
}

export function noteRemoval(
	surgery: Surgery,
	category: Category | 'alpn',
	name: string,
	type: string,
	lost: string,
): void {
	surgery.removals.push({resource: surgery.resource, category, name, type, lost});
}
