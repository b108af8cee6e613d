import {randomUUID} from 'node:crypto';
import {isWildcardType, typeUrl} from '../proto/types.ts';
import type {AckEvent, ConnectionView, HealthEvent, Protocol, PushEvent} from './ads-events.ts';
import {renderDeltaResponse, renderSotwResponse} from './ads-response.ts';
import {type Caller, type ParsedIdentity, parseIdentity} from './authentication.ts';
import type {EnvoyTypes, Message} from './envoy-types.ts';
import type {ConfigGenerator, Resource} from './generator.ts';
import type {Call} from './grpc-server.ts';
import type {GrpcStatus} from './grpc-wire.ts';
import {NodeError, type ProxyNode, parseNode} from './node.ts';
import {RegistrationError, type WorkloadEntries} from './workload-entries.ts';

export interface AdsDeps {
	readonly types: EnvoyTypes;
	readonly generator: ConfigGenerator;
	readonly entries: WorkloadEntries;
	readonly authenticate: (call: Call) => Caller | undefined;
	/** Overrides every stream, while set. */
	readonly refusal: () => GrpcStatus | undefined;
	/** ProxyConfig with the trust bundle, when the mesh has several roots. */
	readonly proxyConfig: () => Resource | undefined;
	/** Whether streams that make an entry are never told of the services it is in; see `Faults.forgetInbound`. */
	readonly isForgettingInbound: () => boolean;
	readonly onPush: (event: PushEvent) => void;
	readonly onAck: (event: AckEvent) => void;
	readonly onHealth: (event: HealthEvent) => void;
	readonly onConnection: (view: ConnectionView, state: 'opened' | 'closed') => void;
}

/** What has changed, and so what has to be sent. */
export interface Change {
	/** Only these services; all of the configuration when left out. */
	readonly hosts?: ReadonlySet<string>;
}

/** The order in which istiod pushes what a connection watches; others follow. */
const pushOrder = [typeUrl.cluster, typeUrl.endpoint, typeUrl.listener, typeUrl.route, typeUrl.secret];

const discovery = 'envoy.service.discovery.v3';
const fieldsOf = {
	delta: {request: `${discovery}.DeltaDiscoveryRequest`},
	sotw: {request: `${discovery}.DiscoveryRequest`},
} as const;

interface Watched {
	readonly typeUrl: string;
	names: Set<string>;
	nonceSent: string;
}

export interface ConnectionDeps extends AdsDeps {
	readonly call: Call;
	readonly caller: Caller;
	readonly protocol: Protocol;
	readonly nextId: (nodeId: string) => string;
	readonly version: () => string;
}

/** One ADS stream of either kind, with istiod's rules for when to answer. */
export class AdsConnection {
	readonly #deps: ConnectionDeps;
	readonly #connectedAt = new Date();
	readonly #watched = new Map<string, Watched>();
	#id = '';
	#node: ProxyNode | undefined;
	#identity = '';
	#isEnded = false;
	/** The services of a new entry are told with the push that follows it, never with the first answers. */
	#isInboundKnown = true;
	#isInboundForgotten = false;

	constructor(deps: ConnectionDeps) {
		this.#deps = deps;
	}

	view(): ConnectionView | undefined {
		if (!this.#node) return undefined;
		const {protocol} = this.#deps;
		const typesWatched = [...this.#watched.keys()];
		return {id: this.#id, node: this.#node, identity: this.#identity, protocol, typesWatched};
	}

	receive(bytes: Buffer): void {
		if (this.#isEnded) return;
		try {
			const request = this.#deps.types.decode(fieldsOf[this.#deps.protocol].request, bytes);
			const type = String(request['type_url'] ?? '');
			if (!this.#node) {
				// A health report before the first subscription says nothing about whom; istiod skips it.
				if (type === typeUrl.health) return;
				this.#initialize(request['node'] as Message | undefined);
			}
			if (type === typeUrl.health) this.#setHealth(request);
			else if (this.#deps.protocol === 'delta') this.#handleDelta(type, request);
			else this.#handleSotw(type, request);
		} catch (error) {
			this.#end(statusOf(error));
		}
	}

	push({hosts}: Change): void {
		if (!this.#node || this.#isEnded) return;
		this.#isInboundKnown = !this.#isInboundForgotten;
		for (const watched of this.#inPushOrder()) {
			const {typeUrl: type, names} = watched;
			if (this.#deps.protocol === 'sotw')
				this.#sendSotw(watched, this.#generate(type, names, type === typeUrl.endpoint ? hosts : undefined));
			else if (hosts && type === typeUrl.cluster) this.#sendChangedClusters(watched, hosts);
			else if (hosts && type === typeUrl.endpoint) this.#sendIncremental(watched, this.#generate(type, names, hosts));
			else this.#sendDelta(watched, names);
		}
	}

	closed(): void {
		this.#isEnded = true;
		if (!this.#node) return;
		this.#deps.entries.disconnect(this.#node, this.#id, new Date());
		this.#deps.onConnection(this.view()!, 'closed');
	}

	/** Reads the node, checks it against who is calling, and registers it. */
	#initialize(message: Message | undefined): void {
		const node = parseNode(message);
		const matched = findIdentity(this.#deps.caller.identities, node);
		if (!matched) {
			const {identities} = this.#deps.caller;
			const text = `no identities ([${identities.join(' ')}]) matched ${node.namespace}/${node.serviceAccount}`;
			throw new RegistrationError({code: 'permission_denied', message: `authorization failed: ${text}`});
		}
		const id = this.#deps.nextId(node.id);
		const isNew = this.#deps.entries.connect(node, matched.parsed, id, this.#connectedAt);
		this.#isInboundKnown = !isNew;
		this.#isInboundForgotten = isNew && this.#deps.isForgettingInbound();
		this.#id = id;
		this.#node = node;
		this.#identity = matched.spiffeId;
		this.#deps.onConnection(this.view()!, 'opened');
	}

	#setHealth(request: Message): void {
		const error = request['error_detail'] as Message | undefined;
		const report = {isHealthy: error === undefined, message: String(error?.['message'] ?? '')};
		this.#deps.onHealth({connection: this.#id, at: performance.now(), ...report});
		this.#deps.entries.setHealth(this.#node!, report.isHealthy, report.message);
	}

	#handleDelta(type: string, request: Message): void {
		if (this.#noteError(type, request)) return;
		const subscribe = (request['resource_names_subscribe'] ?? []) as string[];
		const unsubscribe = (request['resource_names_unsubscribe'] ?? []) as string[];
		const initial = Object.keys((request['initial_resource_versions'] ?? {}) as object);
		const nonce = String(request['response_nonce'] ?? '');
		let watched = this.#watched.get(type);
		if (!watched) {
			// First request for the type, or a reconnect: what the client still has only widens the subscription.
			watched = {typeUrl: type, names: new Set([...subscribe, ...initial]), nonceSent: ''};
			watched.names.delete('*');
			for (const name of unsubscribe) watched.names.delete(name);
			this.#watched.set(type, watched);
		} else {
			if (nonce !== '' && nonce !== watched.nonceSent) return;
			if (nonce !== '') this.#noteAck(type, nonce);
			if (!changeNames(watched.names, [...subscribe, ...initial], unsubscribe)) return;
		}
		const wanted = new Set([...subscribe, ...initial]);
		wanted.delete('*');
		const hasDelta = wanted.size > 0 || unsubscribe.some(name => name !== '*');
		this.#sendDelta(watched, hasDelta ? wanted : watched.names);
		// Clusters that were sent may be warming, and Envoy does not always ask for their endpoints again.
		const endpoints = type === typeUrl.cluster ? this.#watched.get(typeUrl.endpoint) : undefined;
		if (endpoints) this.#sendDelta(endpoints, endpoints.names);
	}

	#handleSotw(type: string, request: Message): void {
		if (this.#noteError(type, request)) return;
		const names = new Set((request['resource_names'] ?? []) as string[]);
		const nonce = String(request['response_nonce'] ?? '');
		if (names.size === 0 && needsNames(type)) {
			this.#watched.delete(type);
			return;
		}
		const watched = this.#watched.get(type);
		if (nonce === '' || !watched) {
			const fresh = {typeUrl: type, names, nonceSent: ''};
			this.#watched.set(type, fresh);
			this.#sendSotw(fresh, this.#generate(type, names));
			return;
		}
		if (nonce !== watched.nonceSent) return;
		this.#noteAck(type, nonce);
		const added = [...names].filter(name => !watched.names.has(name));
		const isSame = added.length === 0 && names.size === watched.names.size;
		watched.names = names;
		if (isSame || (needsNames(type) && added.length === 0)) return;
		// Clusters and listeners are sent whole; of named types, all that are named.
		this.#sendSotw(watched, this.#generate(type, names));
	}

	/** @returns undefined for types that istiod has no generator for, or nothing to say about */
	#generate(type: string, names: Iterable<string>, hosts?: ReadonlySet<string>): Resource[] | undefined {
		const {generator, proxyConfig} = this.#deps;
		const node = this.#node!;
		switch (type) {
			case typeUrl.cluster:
				return generator.clusters(node, {hasInbound: this.#isInboundKnown});
			case typeUrl.endpoint:
				return generator.endpoints(names, hosts);
			case typeUrl.listener:
				return generator.listeners(node, {hasInbound: this.#isInboundKnown});
			case typeUrl.route:
				return generator.routes(node, names);
			case typeUrl.nameTable:
				return [generator.nameTable()];
			case typeUrl.proxyConfig: {
				const resource = proxyConfig();
				return resource ? [resource] : undefined;
			}
			default:
				return undefined;
		}
	}

	/** Sends the named resources (all, for wildcard types) and what of the names is gone. */
	#sendDelta(watched: Watched, names: ReadonlySet<string>): void {
		const {typeUrl: type} = watched;
		const resources = this.#generate(type, names);
		if (!resources) return;
		const present = new Set(resources.map(resource => resource.name));
		const removed = [...names].filter(name => !present.has(name)).sort();
		if (needsNames(type) && resources.length + removed.length === 0) return;
		if (isWildcardType(type)) watched.names = present;
		this.#writeDelta(watched, resources, removed);
	}

	#sendChangedClusters(watched: Watched, hosts: ReadonlySet<string>): void {
		const resources = this.#deps.generator.clusters(this.#node!, {hasInbound: this.#isInboundKnown, hosts});
		const present = new Set(resources.map(resource => resource.name));
		const removed = [...watched.names].filter(name => hosts.has(name.split('|')[3] ?? '') && !present.has(name)).sort();
		for (const name of removed) watched.names.delete(name);
		for (const name of present) watched.names.add(name);
		if (resources.length + removed.length > 0) this.#writeDelta(watched, resources, removed);
	}

	#sendIncremental(watched: Watched, resources: readonly Resource[] | undefined): void {
		if (resources && resources.length > 0) this.#writeDelta(watched, resources, []);
	}

	#writeDelta(watched: Watched, resources: readonly Resource[], removed: readonly string[]): void {
		const nonce = this.#takeNonce(watched);
		const fields = {version: this.#deps.version(), typeUrl: watched.typeUrl, nonce, resources};
		this.#write(watched.typeUrl, nonce, renderDeltaResponse({...fields, removed}), resources.length, removed.length);
	}

	#sendSotw(watched: Watched, resources: readonly Resource[] | undefined): void {
		if (!resources || (resources.length === 0 && needsNames(watched.typeUrl))) return;
		const nonce = this.#takeNonce(watched);
		const fields = {version: this.#deps.version(), typeUrl: watched.typeUrl, nonce, resources};
		this.#write(watched.typeUrl, nonce, renderSotwResponse(fields), resources.length, 0);
	}

	/** The version text with a UUID at its end. */
	#takeNonce(watched: Watched): string {
		watched.nonceSent = this.#deps.version() + randomUUID();
		return watched.nonceSent;
	}

	#write(type: string, nonce: string, body: Buffer, resources: number, removed: number): void {
		const event = {
			connection: this.#id,
			typeUrl: type,
			nonce,
			at: performance.now(),
			bytes: body.length,
			resources,
			removed,
		};
		this.#deps.call.send(body);
		this.#deps.onPush(event);
	}

	#noteAck(type: string, nonce: string): void {
		this.#deps.onAck({connection: this.#id, typeUrl: type, nonce, at: performance.now()});
	}

	/** A refusal is remembered and not answered. */
	#noteError(type: string, request: Message): boolean {
		const error = request['error_detail'] as Message | undefined;
		if (!error) return false;
		const nonce = String(request['response_nonce'] ?? '');
		const detail = {code: Number(error['code'] ?? 0), message: String(error['message'] ?? '')};
		this.#deps.onAck({connection: this.#id, typeUrl: type, nonce, at: performance.now(), error: detail});
		return true;
	}

	#inPushOrder(): Watched[] {
		const known = pushOrder.flatMap(type => this.#watched.get(type) ?? []);
		return [...known, ...[...this.#watched.values()].filter(({typeUrl: type}) => !pushOrder.includes(type as never))];
	}

	#end(status: GrpcStatus): void {
		this.#isEnded = true;
		this.#deps.call.end(status);
	}
}

function findIdentity(
	identities: readonly string[],
	node: ProxyNode,
): {spiffeId: string; parsed: ParsedIdentity} | undefined {
	for (const spiffeId of identities) {
		const parsed = parseIdentity(spiffeId);
		if (!parsed) continue;
		if (node.namespace !== '' && parsed.namespace !== node.namespace) continue;
		if (node.serviceAccount !== '' && parsed.serviceAccount !== node.serviceAccount) continue;
		return {spiffeId, parsed};
	}
	return undefined;
}

/** @returns whether the set has changed; `*` counts each time, as it is never kept */
function changeNames(names: Set<string>, added: readonly string[], removed: readonly string[]): boolean {
	let hasChanged = false;
	for (const name of added) {
		hasChanged ||= !names.has(name);
		if (name !== '*') names.add(name);
	}
	for (const name of removed) hasChanged = names.delete(name) || hasChanged;
	return hasChanged;
}

/** Types that mean nothing without names; istiod takes all others as wildcard. */
function needsNames(type: string): boolean {
	return [typeUrl.endpoint, typeUrl.route, typeUrl.secret, typeUrl.extensionConfig].includes(type as never);
}

function statusOf(error: unknown): GrpcStatus {
	if (error instanceof NodeError) return {code: 'invalid_argument', message: error.message};
	if (error instanceof RegistrationError) return error.status;
	return {code: 'internal', message: error instanceof Error ? error.message : String(error)};
}
