import {isIPv6} from 'node:net';
import {typeUrl} from '../proto/types.ts';
import {FieldWriter} from '../proto/wire.ts';
import type {EnvoyTypes, Message} from './envoy-types.ts';
import type {Flavour} from './filters.ts';
import {
	inboundPassthroughCluster,
	type MtlsMode,
	renderBoundInbound,
	renderInboundCluster,
	renderVirtualInbound,
} from './inbound.ts';
import type {ProxyNode} from './node.ts';
import {
	allowAnyHost,
	domainsOf,
	type Endpoint,
	type ListenerAddress,
	outboundName,
	renderAssignment,
	renderFixedOutboundClusters,
	renderHttpListener,
	renderOutboundCluster,
	renderRouteShell,
	renderTcpListener,
	renderVirtualHost,
	renderVirtualOutbound,
} from './outbound.ts';
import type {Registry, Service} from './registry.ts';
import {entryName, isReady, type WorkloadEntries, type WorkloadEntry} from './workload-entries.ts';

/** A resource ready to send: `any` is the encoded google.protobuf.Any. Unchanged content is the very same buffer. */
export interface Resource {
	readonly name: string;
	readonly any: Buffer;
}

/** Where one workload's Envoy binds, when several run on one machine. */
export interface WorkloadPorts {
	/** virtualOutbound; 15001 unless given. */
	readonly outbound?: number;
	/** virtualInbound; 15006 unless given. */
	readonly inbound?: number;
	/** `none`: no redirection; inbound ports are bound on the workload's own address and lead to 127.0.0.1. */
	readonly interception?: 'redirect' | 'none';
	/** With interception `none`: target port of the application → port that Envoy binds in its place. */
	readonly ingress?: Readonly<Record<number, number>>;
}

export interface GeneratorSettings {
	readonly hasIstioExtensions: boolean;
	readonly trustDomain: string;
	readonly clusterId: string;
	readonly mtls: MtlsMode;
	/** By node name. */
	readonly ports: Readonly<Record<string, WorkloadPorts>>;
}

export interface GeneratorDeps {
	readonly types: EnvoyTypes;
	readonly registry: Registry;
	readonly entries: WorkloadEntries;
	readonly settings: () => GeneratorSettings;
}

/** Entries of the encoding cache; far above what one mesh of 5,000 services needs for two kinds of proxy. */
const cacheLimit = 60_000;

/** Which part of a proxy's configuration is meant. */
interface ConfigPart {
	readonly hasInbound: boolean;
	readonly hosts?: ReadonlySet<string>;
}

/** Turns the registry into what one proxy is sent. Encodes each resource once and keeps the bytes. */
export class ConfigGenerator {
	readonly #deps: GeneratorDeps;
	readonly #encoded = new Map<string, Buffer>();
	/** Endpoints by service, until the next change. */
	readonly #endpoints = new Map<Service, readonly Endpoint[]>();

	constructor(deps: GeneratorDeps) {
		this.#deps = deps;
	}

	/** To be called when entries or services have changed. */
	invalidate(): void {
		this.#endpoints.clear();
		if (this.#encoded.size > cacheLimit) this.#encoded.clear();
	}

	/** @param part - `hosts`: only the clusters of these services; `hasInbound`: also those of its own */
	clusters(node: ProxyNode, {hosts, hasInbound}: ConfigPart): Resource[] {
		const flavour = this.#flavour(node);
		const services = this.#deps.registry.services().filter(service => !hosts || hosts.has(service.host));
		const outbound = services.map(service => {
			const endpoints = this.#endpointsOf(service);
			const identities = [...new Set(endpoints.map(({spiffeId}) => spiffeId ?? ''))].sort();
			return this.#resource(typeUrl.cluster, outboundName(service), [service, identities, flavour], () =>
				renderOutboundCluster(service, endpoints, flavour),
			);
		});
		if (hosts) return outbound;
		const isBound = this.#isBound(node);
		const fixed = renderFixedOutboundClusters(flavour).map(message => this.#fixed(typeUrl.cluster, message, flavour));
		const inbound = (hasInbound ? this.inboundServices(node) : []).map(service =>
			this.#fixed(typeUrl.cluster, renderInboundCluster(service, isBound), [service, isBound]),
		);
		const passthrough = isBound ? [] : [this.#fixed(typeUrl.cluster, inboundPassthroughCluster, [])];
		return [...outbound, ...fixed, ...inbound, ...passthrough];
	}

	/** An assignment for each name asked for, empty when nobody is there; `hosts` narrows it to those services. */
	endpoints(names: Iterable<string>, hosts?: ReadonlySet<string>): Resource[] {
		const resources: Resource[] = [];
		for (const name of names) {
			const [direction, port, , host] = name.split('|');
			if (hosts && (host === undefined || !hosts.has(host))) continue;
			const service = direction === 'outbound' ? this.#deps.registry.service(host ?? '', Number(port)) : undefined;
			const endpoints = service ? this.#endpointsOf(service) : [];
			resources.push(this.#resource(typeUrl.endpoint, name, endpoints, () => renderAssignment(name, endpoints)));
		}
		return resources;
	}

	listeners(node: ProxyNode, {hasInbound}: ConfigPart): Resource[] {
		const flavour = this.#flavour(node);
		const {mtls} = this.#deps.settings();
		const ports = this.#portsOf(node.name);
		const listeners: Resource[] = [];
		const add = (name: string, key: unknown, build: () => Message) =>
			listeners.push(this.#resource(typeUrl.listener, name, [key, flavour], build));
		const addHttp = (at: ListenerAddress, route: string) =>
			add(`${at.address}_${at.port}`, [at, route], () => renderHttpListener(at, route, flavour));
		const addTcp = (at: ListenerAddress, cluster: string) =>
			add(`${at.address}_${at.port}`, [at, cluster], () => renderTcpListener(at, cluster, flavour));
		const services = this.#deps.registry.services();
		for (const port of new Set(services.filter(({protocol}) => protocol !== 'tcp').map(({port}) => port))) {
			addHttp({address: '0.0.0.0', port, isBound: false}, String(port));
		}
		for (const service of services) {
			const {address, port, protocol} = service;
			if (protocol === 'tcp') addTcp({address, port, isBound: false}, outboundName(service));
			const bindPort = bindPortOf(service, node.name);
			if (bindPort === undefined) continue;
			const at = {address: '127.0.0.1', port: bindPort, isBound: true};
			if (protocol === 'tcp') addTcp(at, outboundName(service));
			else addHttp(at, `${service.host}:${port}`);
		}
		const inbound = hasInbound ? this.inboundServices(node) : [];
		if (this.#isBound(node)) {
			for (const service of inbound) {
				const at = {address: node.addresses[0]!, port: ports.ingress?.[service.targetPort] ?? service.targetPort};
				add(`${at.address}_${at.port}`, [at, service, mtls], () => renderBoundInbound(service, at, mtls, flavour));
			}
			return listeners;
		}
		const {outbound: outboundPort = 15001, inbound: inboundPort = 15006} = ports;
		const isDual = node.addresses.some(isIPv6);
		add('virtualOutbound', [outboundPort, isDual], () => renderVirtualOutbound(outboundPort, isDual, flavour));
		add('virtualInbound', [inboundPort, inbound, mtls], () =>
			renderVirtualInbound(inboundPort, inbound, mtls, flavour),
		);
		return listeners;
	}

	/** Named by port for all its HTTP services together, or by `HOST:PORT` for one. */
	routes(node: ProxyNode, names: Iterable<string>): Resource[] {
		return [...names].map(name => ({name, any: this.#route(node, name)}));
	}

	nameTable(): Resource {
		const table = new FieldWriter();
		const addresses = new Map(this.#deps.registry.services().map(({host, address}) => [host, address]));
		for (const [host, address] of addresses) {
			table.message(1, entry =>
				entry.string(1, host).message(2, info => info.string(1, address).string(2, 'External')),
			);
		}
		return {name: '', any: wrapAny(typeUrl.nameTable, table.finish())};
	}

	/** Services whose traffic this proxy receives: its WorkloadEntry must be registered and healthy. */
	inboundServices(node: ProxyNode): Service[] {
		const {entries} = this.#deps;
		const {namespace, group, addresses} = node;
		const entry =
			group === '' ? entries.findByAddress(namespace, addresses[0]!) : entries.find(namespace, entryName(node));
		if (!entry || !isReady(entry)) return [];
		const byPort = new Map<number, Service>();
		for (const service of this.#deps.registry.services()) {
			if (selects(service, entry) && !byPort.has(service.targetPort)) byPort.set(service.targetPort, service);
		}
		return [...byPort.values()];
	}

	#route(node: ProxyNode, name: string): Buffer {
		const [host, port] = name.includes(':') ? name.split(':') : [undefined, name];
		const services = this.#deps.registry
			.services()
			.filter(
				service => service.protocol !== 'tcp' && String(service.port) === port && (!host || service.host === host),
			);
		const route = new FieldWriter().raw(
			this.#encode('envoy.config.route.v3.RouteConfiguration', ['shell', name], () => renderRouteShell(name)),
		);
		const virtualHost = 'envoy.config.route.v3.VirtualHost';
		for (const service of services) {
			const domains = host ? ['*'] : domainsOf(service, node.namespace);
			route.bytes(
				2,
				this.#encode(virtualHost, [service.host, service.port, domains], () => renderVirtualHost(service, domains)),
			);
		}
		if (!host)
			route.bytes(
				2,
				this.#encode(virtualHost, 'allow_any', () => allowAnyHost),
			);
		return wrapAny(typeUrl.route, route.finish());
	}

	#endpointsOf(service: Service): readonly Endpoint[] {
		const known = this.#endpoints.get(service);
		if (known) return known;
		const {trustDomain, clusterId} = this.#deps.settings();
		const name = service.host.split('.')[0]!;
		const fixed = (service.endpoints ?? []).map((endpoint, index) => ({
			...endpoint,
			workload: `${name}-${index};${service.namespace};${name};;${clusterId}`,
		}));
		const selected = this.#deps.entries
			.list()
			.filter(entry => isReady(entry) && selects(service, entry))
			.map(({name: own, namespace, nodeName, annotations, labels, spec}) => ({
				address: spec.address,
				port: this.#ingressPort(nodeName, service.targetPort),
				...(spec.serviceAccount === ''
					? {}
					: {spiffeId: `spiffe://${trustDomain}/ns/${namespace}/sa/${spec.serviceAccount}`}),
				workload: `${annotations['istio.io/autoRegistrationGroup'] ?? labels['service.istio.io/workload-name'] ?? own};${namespace};${spec.labels['service.istio.io/canonical-name'] ?? spec.labels['app'] ?? name};;${clusterId}`,
			}));
		const endpoints = [...fixed, ...selected];
		this.#endpoints.set(service, endpoints);
		return endpoints;
	}

	#ingressPort(nodeName: string, targetPort: number): number {
		const {interception, ingress} = this.#portsOf(nodeName);
		return (interception === 'none' ? ingress?.[targetPort] : undefined) ?? targetPort;
	}

	#portsOf(nodeName: string): WorkloadPorts {
		return this.#deps.settings().ports[nodeName] ?? {};
	}

	#isBound(node: ProxyNode): boolean {
		return (this.#portsOf(node.name).interception ?? (node.interception === 'NONE' ? 'none' : 'redirect')) === 'none';
	}

	#flavour(node: ProxyNode): Flavour {
		const {hasIstioExtensions, trustDomain} = this.#deps.settings();
		const canonicalName = node.labels['service.istio.io/canonical-name'] ?? 'unknown';
		return {hasIstioExtensions, trustDomain, namespace: node.namespace, canonicalName, clusterId: node.clusterId};
	}

	#fixed(type: string, message: Message, key: unknown): Resource {
		return this.#resource(type, String(message['name']), key, () => message);
	}

	/** @param key - everything the content depends on besides the name */
	#resource(type: string, name: string, key: unknown, build: () => Message): Resource {
		const message = type.slice(type.indexOf('/') + 1);
		const id = `any ${type} ${name} ${JSON.stringify(key)}`;
		let encoded = this.#encoded.get(id);
		if (!encoded) {
			encoded = wrapAny(type, this.#deps.types.encode(message, build()));
			this.#encoded.set(id, encoded);
		}
		return {name, any: encoded};
	}

	#encode(type: string, key: unknown, build: () => Message): Buffer {
		const id = `${type} ${JSON.stringify(key)}`;
		let encoded = this.#encoded.get(id);
		if (!encoded) {
			encoded = this.#deps.types.encode(type, build());
			this.#encoded.set(id, encoded);
		}
		return encoded;
	}
}

export function wrapAny(type: string, value: Buffer): Buffer {
	return new FieldWriter().string(1, type).bytes(2, value).finish();
}

/** A ServiceEntry's workloadSelector: same namespace, all labels. */
function selects({namespace, selector}: Service, entry: WorkloadEntry): boolean {
	if (!selector || namespace !== entry.namespace) return false;
	return Object.entries(selector).every(([name, value]) => entry.labels[name] === value);
}

function bindPortOf({bindPort}: Service, nodeName: string): number | undefined {
	return typeof bindPort === 'object' ? bindPort[nodeName] : bindPort;
}
