import {typeUrl} from '../proto/types.ts';
import {FieldReader, WireError} from '../proto/wire.ts';
import type {Cache} from './cache.ts';
import {messageName} from './extensions.ts';

/** A Wasm filter whose code Envoy has to fetch: istiod's own agent does that for it and hands it a file, we do not. */
export interface RemoteCode {
	readonly resource: string;
	readonly uri: string;
	/** What comes of it, and what to do. */
	readonly problem: string;
}

const wasmTypes: ReadonlySet<string> = new Set([
	'envoy.extensions.filters.http.wasm.v3.Wasm',
	'envoy.extensions.filters.network.wasm.v3.Wasm',
]);

/** All that is in the cache; extension configurations are few. */
export function listRemoteCode(cache: Cache): RemoteCode[] {
	return [...cache.type(typeUrl.extensionConfig).resources.values()].flatMap(({name, any}) => {
		const uri = remoteCodeOf(any);
		return uri === undefined ? [] : [{resource: name, uri, problem: problemOf(uri)}];
	});
}

function problemOf(uri: string): string {
	return uri.startsWith('oci:')
		? 'Envoy cannot fetch from an OCI registry, so this filter does not load: serve the module over http'
		: 'Envoy fetches the module itself, and only with a sha256; when it cannot, this filter does not load';
}

/**
 * Where the code of a Wasm extension is fetched from. Any: value 2 = TypedExtensionConfig: typed_config 2 = Any of Wasm:
 * config 1 = PluginConfig: vm_config 3: code 3 = AsyncDataSource: remote 2: http_uri 1: uri 1.
 * @returns undefined when it is here already, is something else, or cannot be read
 */
export function remoteCodeOf(any: Buffer): string | undefined {
	try {
		const config = descend(new FieldReader(any), [2, 2]);
		if (!config || !wasmTypes.has(messageName(textOf(config, 1)))) return undefined;
		const uri = descend(config, [2, 1, 3, 3, 2, 1]);
		// A password in it is nobody's business.
		return uri && (textOf(uri, 1).replace(/\/\/[^/]*@/, '//') || undefined);
	} catch (error) {
		if (error instanceof WireError) return undefined;
		throw error;
	}
}

/** Into the first field of each number. */
function descend(message: FieldReader, [number, ...deeper]: readonly number[]): FieldReader | undefined {
	if (number === undefined) return message;
	const fields = new FieldReader(message.buffer, message.start, message.messageEnd);
	while (fields.next()) if (fields.number === number) return descend(fields.message(), deeper);
	return undefined;
}

function textOf(message: FieldReader, number: number): string {
	const fields = new FieldReader(message.buffer, message.start, message.messageEnd);
	while (fields.next()) if (fields.number === number) return fields.string();
	return '';
}
