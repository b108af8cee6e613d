import {FieldWriter} from '../proto/wire.ts';
import type {Resource} from './generator.ts';

export interface ResponseFields {
	readonly version: string;
	readonly typeUrl: string;
	readonly nonce: string;
	readonly resources: readonly Resource[];
}

/** `DeltaDiscoveryResponse`. Per-resource versions stay empty, as istiod leaves them. */
export function renderDeltaResponse({
	version,
	typeUrl,
	nonce,
	resources,
	removed,
}: ResponseFields & {readonly removed: readonly string[]}): Buffer {
	const body = new FieldWriter().string(1, version);
	for (const {name, any} of resources) body.append(2, new FieldWriter().bytes(2, any).string(3, name));
	return body.string(4, typeUrl).string(5, nonce).strings(6, removed).finish();
}

/** `DiscoveryResponse`. */
export function renderSotwResponse({version, typeUrl, nonce, resources}: ResponseFields): Buffer {
	const body = new FieldWriter().string(1, version);
	for (const {any} of resources) body.bytes(2, any);
	return body.string(4, typeUrl).string(5, nonce).finish();
}
