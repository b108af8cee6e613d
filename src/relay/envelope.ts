import {FieldReader, FieldWriter, MessageBuffer, sizeOfBytes} from '../proto/wire.ts';

/**
 * The xDS envelopes, read and written by hand: everything inside stays bytes. Field numbers from
 * envoy/service/discovery/v3/discovery.proto.
 */

/** A resource as it came: its name and the encoded `google.protobuf.Any`. */
export interface RawResource {
	readonly name: string;
	readonly any: Buffer;
}

/** Resources of one answer: names, and where each one's encoded `google.protobuf.Any` lies in the message. */
export class ResourceList {
	readonly message: Buffer;
	readonly names: string[] = [];
	readonly starts: number[] = [];
	readonly ends: number[] = [];

	/** Whether the message is a DeltaDiscoveryResponse that adds these and does nothing else. */
	isPlainDelta = false;

	constructor(message: Buffer) {
		this.message = message;
	}

	get length(): number {
		return this.names.length;
	}

	/** Shared with the message. */
	any(index: number): Buffer {
		return this.message.subarray(this.starts[index], this.ends[index]);
	}

	*[Symbol.iterator](): Generator<RawResource> {
		for (const [index, name] of this.names.entries()) yield {name, any: this.any(index)};
	}

	add(name: string, start: number, end: number): void {
		this.names.push(name);
		this.starts.push(start);
		this.ends.push(end);
	}

	/** Which of them hold these bytes. One search of the whole message, as mostly none does. */
	*holding(needle: Buffer): Generator<number> {
		const {message, starts, ends} = this;
		let index = 0;
		for (let at = message.indexOf(needle); at >= 0; ) {
			while (index < ends.length && ends[index]! < at + needle.length) index++;
			if (index === ends.length) return;
			const isInside = starts[index]! <= at;
			if (isInside) yield index;
			at = message.indexOf(needle, isInside ? ends[index]! : at + 1);
		}
	}
}

export interface Response {
	readonly typeUrl: string;
	readonly nonce: string;
	readonly version: string;
	readonly resources: ResourceList;
	/** Delta only. */
	readonly removed: readonly string[];
}

export interface ErrorDetail {
	/** gRPC code. */
	readonly code: number;
	readonly message: string;
}

export interface Request {
	/** The encoded core.v3.Node, on the first message of a stream. */
	readonly node: Buffer | undefined;
	readonly typeUrl: string;
	readonly nonce: string;
	readonly error: ErrorDetail | undefined;
	/** Delta: names to add. State of the world: all names wanted. */
	readonly subscribe: readonly string[];
	/** Delta only. */
	readonly unsubscribe: readonly string[];
	/** Delta only: what a reconnecting client still holds, name → version. */
	readonly initialVersions: ReadonlyMap<string, string>;
	/** State of the world only. */
	readonly version: string;
}

/** DeltaDiscoveryResponse: system_version_info 1, resources 2, type_url 4, nonce 5, removed_resources 6. @throws WireError */
export function parseDeltaResponse(message: Buffer): Response {
	let [typeUrl, nonce, version] = ['', '', ''];
	const resources = new ResourceList(message);
	const removed: string[] = [];
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number === 1) version = field.string();
		else if (field.number === 2) addResource(resources, field.message());
		else if (field.number === 4) typeUrl = field.string();
		else if (field.number === 5) nonce = field.string();
		else if (field.number === 6) removed.push(field.string());
	}
	resources.isPlainDelta = removed.length === 0;
	return {typeUrl, nonce, version, resources, removed};
}

/** Resource: version 1, resource 2 (Any), name 3. */
function addResource(list: ResourceList, field: FieldReader): void {
	let name = '';
	let start = field.start;
	let end = start;
	while (field.next()) {
		if (field.number === 2) {
			[start, end] = field.range();
		} else if (field.number === 3) name = field.string();
	}
	list.add(name, start, end);
}

/** DiscoveryResponse: version_info 1, resources 2 (Any), type_url 4, nonce 5. Names are read from the bodies. @throws WireError */
export function parseSotwResponse(message: Buffer): Response {
	let [typeUrl, nonce, version] = ['', '', ''];
	const resources = new ResourceList(message);
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number === 1) version = field.string();
		else if (field.number === 2) {
			const any = field.message();
			const [start, end] = field.range();
			resources.add(nameInside(any), start, end);
		} else if (field.number === 4) typeUrl = field.string();
		else if (field.number === 5) nonce = field.string();
	}
	return {typeUrl, nonce, version, resources, removed: []};
}

/** Every Envoy resource keeps its name in field 1 of its body (Cluster, Listener, RouteConfiguration, ClusterLoadAssignment, Secret, TypedExtensionConfig). */
function nameInside(field: FieldReader): string {
	while (field.next()) {
		if (field.number !== 2) continue;
		for (const body = field.message(); body.next(); ) {
			if (body.number === 1) return body.type === 2 ? body.string() : '';
		}
	}
	return '';
}

/** DeltaDiscoveryRequest: node 1, type_url 2, subscribe 3, unsubscribe 4, initial_resource_versions 5, response_nonce 6, error_detail 7. @throws WireError */
export function parseDeltaRequest(message: Buffer): Request {
	let node: Buffer | undefined;
	let [typeUrl, nonce] = ['', ''];
	let error: ErrorDetail | undefined;
	const subscribe: string[] = [];
	const unsubscribe: string[] = [];
	const initialVersions = new Map<string, string>();
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number === 1) node = field.bytes();
		else if (field.number === 2) typeUrl = field.string();
		else if (field.number === 3) subscribe.push(field.string());
		else if (field.number === 4) unsubscribe.push(field.string());
		else if (field.number === 5) {
			const [name, version] = parsePair(field.message());
			initialVersions.set(name, version);
		} else if (field.number === 6) nonce = field.string();
		else if (field.number === 7) error = parseStatus(field.message());
	}
	return {node, typeUrl, nonce, error, subscribe, unsubscribe, initialVersions, version: ''};
}

/** DiscoveryRequest: version_info 1, node 2, resource_names 3, type_url 4, response_nonce 5, error_detail 6. @throws WireError */
export function parseSotwRequest(message: Buffer): Request {
	let node: Buffer | undefined;
	let [typeUrl, nonce, version] = ['', '', ''];
	let error: ErrorDetail | undefined;
	const subscribe: string[] = [];
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number === 1) version = field.string();
		else if (field.number === 2) node = field.bytes();
		else if (field.number === 3) subscribe.push(field.string());
		else if (field.number === 4) typeUrl = field.string();
		else if (field.number === 5) nonce = field.string();
		else if (field.number === 6) error = parseStatus(field.message());
	}
	return {node, typeUrl, nonce, error, subscribe, unsubscribe: [], initialVersions: new Map(), version};
}

function parsePair(field: FieldReader): [string, string] {
	let [key, value] = ['', ''];
	while (field.next()) {
		if (field.number === 1) key = field.string();
		else if (field.number === 2) value = field.string();
	}
	return [key, value];
}

/** google.rpc.Status: code 1, message 2. */
function parseStatus(field: FieldReader): ErrorDetail {
	let code = 0;
	let message = '';
	while (field.next()) {
		if (field.number === 1) code = field.int32();
		else if (field.number === 2) message = field.string();
	}
	return {code, message};
}

export function encodeDeltaRequest(request: {
	readonly node?: Buffer | undefined;
	readonly typeUrl: string;
	readonly subscribe?: Iterable<string>;
	readonly unsubscribe?: Iterable<string>;
	readonly nonce?: string;
	readonly error?: ErrorDetail | undefined;
}): Buffer {
	const writer = new FieldWriter();
	if (request.node) writer.bytes(1, request.node);
	writer
		.string(2, request.typeUrl)
		.strings(3, request.subscribe ?? [])
		.strings(4, request.unsubscribe ?? [])
		.string(6, request.nonce ?? '');
	if (request.error) appendStatus(writer, 7, request.error);
	return writer.finish();
}

export function encodeSotwRequest(request: {
	readonly node?: Buffer | undefined;
	readonly typeUrl: string;
	readonly names?: Iterable<string>;
	readonly version?: string;
	readonly nonce?: string;
	readonly error?: ErrorDetail | undefined;
}): Buffer {
	const writer = new FieldWriter().string(1, request.version ?? '');
	if (request.node) writer.bytes(2, request.node);
	writer
		.strings(3, request.names ?? [])
		.string(4, request.typeUrl)
		.string(5, request.nonce ?? '');
	if (request.error) appendStatus(writer, 6, request.error);
	return writer.finish();
}

function appendStatus(writer: FieldWriter, number: number, {code, message}: ErrorDetail): void {
	writer.message(number, status => status.uint(1, code).string(2, message));
}

/** An answer to Envoy, built resource by resource so that the caller can pause between them. */
export interface AnswerBuilder {
	/** Bytes so far. */
	readonly length: number;
	add(name: string, version: string, any: Uint8Array): void;
	/** @param removed - delta only; state of the world says so by leaving them out */
	finish(typeUrl: string, nonce: string, removed: Iterable<string>): Buffer;
}

/** What an answer's resource takes besides its Any and its name: tags, lengths, the version. */
const overheadBytes = 64;

/** DeltaDiscoveryResponse. @param expected - what will be added, to have the room at once */
export function buildDelta(expected: {
	readonly anyBytes: number;
	readonly count: number;
	readonly nameBytes: number;
}): AnswerBuilder {
	const out = new MessageBuffer(expected.anyBytes + expected.nameBytes + (expected.count + 4) * overheadBytes);
	return {
		get length() {
			return out.length;
		},
		add(name, version, any) {
			const nameBytes = Buffer.byteLength(name);
			const versionBytes = Buffer.byteLength(version);
			out.head(2, sizeOfBytes(versionBytes) + sizeOfBytes(any.length) + sizeOfBytes(nameBytes));
			out.text(1, version, versionBytes).bytes(2, any).text(3, name, nameBytes);
		},
		finish(typeUrl, nonce, removed) {
			out.text(4, typeUrl).text(5, nonce);
			for (const name of removed) out.text(6, name);
			return out.finish();
		},
	};
}

/** DiscoveryResponse, with its nonce as version. */
export function buildSotw(expected: {readonly anyBytes: number; readonly count: number}): AnswerBuilder {
	const out = new MessageBuffer(expected.anyBytes + (expected.count + 4) * overheadBytes);
	return {
		get length() {
			return out.length;
		},
		add: (_name, _version, any) => void out.bytes(2, any),
		finish: (typeUrl, nonce) => out.text(1, nonce).text(4, typeUrl).text(5, nonce).finish(),
	};
}
