/** An app protocol as a Service port declares it; `http2` and `grpc` differ only in retries. */
export type Protocol = 'http' | 'http2' | 'grpc' | 'tcp';

export interface StaticEndpoint {
	readonly address: string;
	readonly port: number;
	/** Makes traffic to it mutual TLS; without it, plaintext. */
	readonly spiffeId?: string;
}

/** One port of one service. */
export interface ServiceSpec {
	/** Fully qualified, `echo.bar.svc.cluster.local`. */
	readonly host: string;
	readonly namespace: string;
	readonly port: number;
	/** Virtual address; one of 240.240.0.0/16 unless given. The same for every port of a host. */
	readonly address?: string;
	/** The port at the endpoints; `port` unless given. */
	readonly targetPort?: number;
	readonly protocol: Protocol;
	/** WorkloadEntries with these labels are endpoints, and get an inbound listener for the port. */
	readonly selector?: Readonly<Record<string, string>>;
	readonly endpoints?: readonly StaticEndpoint[];
	/** A listener that Envoy really binds on 127.0.0.1, so that no kernel rules are needed; by node name to tell Envoys on one machine apart. */
	readonly bindPort?: number | Readonly<Record<string, number>>;
}

export interface Service extends ServiceSpec {
	readonly targetPort: number;
	readonly address: string;
	/** Changes the clusters' content without changing what they mean; see touchServices. */
	readonly revision: number;
}

export interface WorkloadGroupSpec {
	readonly name: string;
	readonly namespace: string;
	/** `template.serviceAccount`; '' accepts any. */
	readonly serviceAccount?: string;
	/** `metadata.labels`. */
	readonly labels?: Readonly<Record<string, string>>;
	/** `metadata.annotations`. */
	readonly annotations?: Readonly<Record<string, string>>;
	/** Port name → number. */
	readonly ports?: Readonly<Record<string, number>>;
	/** ReadinessProbe as proto-JSON, put into mesh.yaml. */
	readonly probe?: Readonly<Record<string, unknown>>;
	readonly network?: string;
}

export const serviceKey = ({host, port}: {host: string; port: number}): string => `${host}:${port}`;

/** The configuration a user of the mesh writes. Every change says which hosts it touched, or `all`. */
export class Registry {
	readonly #services = new Map<string, Service>();
	readonly #addresses = new Map<string, string>();
	readonly #groups = new Map<string, WorkloadGroupSpec>();
	#nextAddress = 1;
	#sorted: readonly Service[] | undefined;

	/** Sorted by host and port, so that whatever is rendered from it is stable. */
	services(): readonly Service[] {
		this.#sorted ??= [...this.#services.values()].sort(compareServices);
		return this.#sorted;
	}

	service(host: string, port: number): Service | undefined {
		return this.#services.get(serviceKey({host, port}));
	}

	addService(spec: ServiceSpec): Service {
		const address = spec.address ?? this.#addresses.get(spec.host) ?? this.#takeAddress();
		this.#addresses.set(spec.host, address);
		const service = {...spec, targetPort: spec.targetPort ?? spec.port, address, revision: 0};
		this.#services.set(serviceKey(spec), service);
		this.#sorted = undefined;
		return service;
	}

	/** Removes one port, or every port of the hosts. @returns whether there was any */
	removeServices(hosts: ReadonlySet<string>, port?: number): boolean {
		const gone = this.services().filter(
			service => hosts.has(service.host) && (port === undefined || service.port === port),
		);
		for (const service of gone) this.#services.delete(serviceKey(service));
		this.#sorted = undefined;
		return gone.length > 0;
	}

	/** Gives `count` services new content. @returns their hosts */
	touch(count: number): Set<string> {
		const touched = this.services().slice(0, count);
		for (const service of touched)
			this.#services.set(serviceKey(service), {...service, revision: service.revision + 1});
		this.#sorted = undefined;
		return new Set(touched.map(service => service.host));
	}

	group(namespace: string, name: string): WorkloadGroupSpec | undefined {
		return this.#groups.get(`${namespace}/${name}`);
	}

	addGroup(group: WorkloadGroupSpec): void {
		this.#groups.set(`${group.namespace}/${group.name}`, group);
	}

	removeGroup(namespace: string, name: string): void {
		this.#groups.delete(`${namespace}/${name}`);
	}

	/** 240.240.0.0/16, the range istiod allocates from. */
	#takeAddress(): string {
		const number = this.#nextAddress++;
		return `240.240.${Math.floor(number / 255)}.${(number % 255) + 1}`;
	}
}

function compareServices(a: Service, b: Service): number {
	if (a.host !== b.host) return a.host < b.host ? -1 : 1;
	return a.port - b.port;
}
