import type {ParsedIdentity} from './authentication.ts';
import type {GrpcStatus} from './grpc-wire.ts';
import type {ProxyNode} from './node.ts';
import type {WorkloadGroupSpec} from './registry.ts';

export interface Condition {
	readonly type: 'Healthy';
	readonly status: 'True' | 'False';
	readonly message?: string;
	readonly lastProbeTime: string;
	readonly lastTransitionTime: string;
}

/** As the Kubernetes object, less the envelope. */
export interface WorkloadEntry {
	readonly name: string;
	readonly namespace: string;
	readonly labels: Readonly<Record<string, string>>;
	readonly annotations: Readonly<Record<string, string>>;
	readonly ownerReferences: readonly {
		readonly kind: 'WorkloadGroup';
		readonly name: string;
		readonly controller: true;
	}[];
	readonly spec: {
		readonly address: string;
		readonly labels: Readonly<Record<string, string>>;
		readonly serviceAccount: string;
		readonly ports: Readonly<Record<string, number>>;
		readonly network?: string;
		readonly locality?: string;
	};
	readonly status: {readonly conditions: readonly Condition[]};
	/** Name of the node that registered it; not part of the object. */
	readonly nodeName: string;
}

export interface EntriesDeps {
	readonly findGroup: (namespace: string, name: string) => WorkloadGroupSpec | undefined;
	/** How long an entry outlives its last connection. istiod: 10 s. */
	readonly gracePeriodMs: number;
	/** The entry's endpoint appeared, went, or changed its health. */
	readonly onChange: (entry: WorkloadEntry) => void;
}

/** Refuses a registration; what istiod's OnConnect returns. */
export class RegistrationError extends Error {
	readonly status: GrpcStatus;
	constructor(status: GrpcStatus) {
		super(status.message);
		this.status = status;
	}
}

export const annotation = {
	group: 'istio.io/autoRegistrationGroup',
	controller: 'istio.io/workloadController',
	connectedAt: 'istio.io/connectedAt',
	disconnectedAt: 'istio.io/disconnectedAt',
	healthChecks: 'proxy.istio.io/health-checks-enabled',
} as const;

/** Name of the pod that plays istiod. */
const instanceId = 'istiod-sandbox-0';
/** istiod's sweep runs every ten grace periods. */
const sweepFactor = 10;

/** `GROUP-IP[-NETWORK]`, cut from the front past 253 characters. */
export function entryName({group, addresses, network}: Pick<ProxyNode, 'group' | 'addresses' | 'network'>): string {
	const parts = [group, addresses[0]!.replaceAll(':', '-'), ...(network === '' ? [] : [network])];
	return parts.join('-').slice(-253);
}

/** The WorkloadEntries of the mesh and who is connected for them. They live on while the control plane restarts. */
export class WorkloadEntries {
	readonly #deps: EntriesDeps;
	readonly #entries = new Map<string, WorkloadEntry>();
	/** Entry key → ids of the connections that keep it. */
	readonly #connections = new Map<string, Set<string>>();
	readonly #timers = new Set<NodeJS.Timeout>();
	#sweep: NodeJS.Timeout | undefined;
	#isSuspended = false;

	constructor(deps: EntriesDeps) {
		this.#deps = deps;
		this.resume();
	}

	list(): readonly WorkloadEntry[] {
		return [...this.#entries.values()].sort((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1));
	}

	find(namespace: string, name: string): WorkloadEntry | undefined {
		return this.#entries.get(`${namespace}/${name}`);
	}

	/**
	 * Creates or takes over the entry of a node that asks for registration.
	 * @param identity - verified, from the certificate or token
	 * @returns whether it was created
	 * @throws RegistrationError
	 */
	connect(node: ProxyNode, identity: ParsedIdentity | undefined, connectionId: string, connectedAt: Date): boolean {
		if (node.group === '') return false;
		const name = entryName(node);
		const key = `${node.namespace}/${name}`;
		this.#hold(key, connectionId);
		try {
			return this.#register(node, name, identity, connectedAt);
		} catch (error) {
			this.#connections.get(key)?.delete(connectionId);
			throw error;
		}
	}

	/** After the last connection for it, an entry is marked disconnected and deleted when the grace period is over. */
	disconnect(node: ProxyNode, connectionId: string, at: Date): void {
		const key = `${node.namespace}/${entryName(node)}`;
		const holders = this.#connections.get(key);
		if (node.group === '' || !holders?.delete(connectionId) || holders.size > 0) return;
		const entry = this.#entries.get(key);
		if (!entry) return;
		const {[annotation.connectedAt]: _, ...annotations} = entry.annotations;
		this.#entries.set(key, {...entry, annotations: {...annotations, [annotation.disconnectedAt]: at.toISOString()}});
		if (this.#isSuspended) return;
		const timer = setTimeout(() => {
			this.#timers.delete(timer);
			this.#deleteIfDisconnected(key);
		}, this.#deps.gracePeriodMs).unref();
		this.#timers.add(timer);
	}

	/** As somebody with the Kubernetes API does: creates, or replaces. */
	put(entry: WorkloadEntry): void {
		const before = this.#entries.get(keyOf(entry));
		this.#entries.set(keyOf(entry), entry);
		const isSame =
			before && isReady(before) === isReady(entry) && JSON.stringify(before.spec) === JSON.stringify(entry.spec);
		if (!isSame) this.#deps.onChange(entry);
	}

	/** Of a node that names no group: istiod finds it by its address. */
	findByAddress(namespace: string, address: string): WorkloadEntry | undefined {
		return this.list().find(entry => entry.namespace === namespace && entry.spec.address === address);
	}

	/** Takes a health report. One that changes nothing only moves the probe time. */
	setHealth(node: ProxyNode, isHealthy: boolean, message: string): void {
		const key = `${node.namespace}/${entryName(node)}`;
		const entry = this.#entries.get(key);
		if (!entry || entry.annotations[annotation.healthChecks] === undefined) return;
		const now = new Date().toISOString();
		const condition: Condition = {
			type: 'Healthy',
			status: isHealthy ? 'True' : 'False',
			...(isHealthy ? {} : {message}),
			lastProbeTime: now,
			lastTransitionTime: now,
		};
		const changed = {...entry, status: {conditions: [condition]}};
		this.#entries.set(key, changed);
		if (isReady(entry) !== isReady(changed)) this.#deps.onChange(changed);
	}

	/** As somebody with kubectl does. */
	delete(namespace: string, name: string): void {
		const key = `${namespace}/${name}`;
		const entry = this.#entries.get(key);
		if (!entry) return;
		this.#entries.delete(key);
		this.#deps.onChange(entry);
	}

	/** The controlling istiod has died: its timers are gone, its entries are not. */
	suspend(): void {
		this.#isSuspended = true;
		for (const timer of this.#timers) clearTimeout(timer);
		this.#timers.clear();
		clearInterval(this.#sweep);
	}

	resume(): void {
		this.#isSuspended = false;
		const sweep = () => {
			for (const key of this.#entries.keys()) this.#deleteIfDisconnected(key);
		};
		clearInterval(this.#sweep);
		this.#sweep = setInterval(sweep, sweepFactor * this.#deps.gracePeriodMs).unref();
	}

	#hold(key: string, connectionId: string): void {
		const holders = this.#connections.get(key) ?? new Set();
		holders.add(connectionId);
		this.#connections.set(key, holders);
	}

	#register(node: ProxyNode, name: string, identity: ParsedIdentity | undefined, connectedAt: Date): boolean {
		const key = `${node.namespace}/${name}`;
		const existing = this.#entries.get(key);
		if (existing) {
			checkIdentity(identity, existing);
			// The spec stays as it was first written, even if the group has changed since.
			const {[annotation.disconnectedAt]: _, ...annotations} = existing.annotations;
			this.#entries.set(key, {
				...existing,
				annotations: {...annotations, ...connectAnnotations(connectedAt)},
			});
			return false;
		}
		const group = this.#deps.findGroup(node.namespace, node.group);
		if (!group) {
			const what = `auto-registration WorkloadEntry of ${node.id} failed`;
			const message = `${what}: cannot find WorkloadGroup ${node.namespace}/${node.group}`;
			throw new RegistrationError({code: 'failed_precondition', message});
		}
		const entry = renderEntry(node, name, group, connectedAt);
		checkIdentity(identity, entry);
		this.#entries.set(key, entry);
		this.#deps.onChange(entry);
		return true;
	}

	#deleteIfDisconnected(key: string): void {
		const entry = this.#entries.get(key);
		if (!entry || entry.annotations[annotation.disconnectedAt] === undefined) return;
		const since = Date.parse(entry.annotations[annotation.disconnectedAt]!);
		// Another disconnect since has its own timer; a few milliseconds of timer slack are not "before".
		if (Date.now() - since < this.#deps.gracePeriodMs - 5) return;
		this.#entries.delete(key);
		this.#deps.onChange(entry);
	}
}

/** Whether traffic may be sent there: an entry with health checks needs a good report first. */
export function isReady(entry: WorkloadEntry): boolean {
	if (entry.annotations[annotation.healthChecks] !== 'true') return true;
	return entry.status.conditions.some(condition => condition.status === 'True');
}

function keyOf({namespace, name}: {namespace: string; name: string}): string {
	return `${namespace}/${name}`;
}

function connectAnnotations(at: Date): Record<string, string> {
	return {[annotation.controller]: instanceId, [annotation.connectedAt]: at.toISOString()};
}

function renderEntry(node: ProxyNode, name: string, group: WorkloadGroupSpec, connectedAt: Date): WorkloadEntry {
	const {'istio-locality': _, ...nodeLabels} = node.labels;
	const labels = {...group.labels, ...nodeLabels};
	return {
		name,
		namespace: node.namespace,
		labels,
		annotations: {
			[annotation.group]: node.group,
			...group.annotations,
			...connectAnnotations(connectedAt),
			...(node.hasReadinessProbe ? {[annotation.healthChecks]: 'true'} : {}),
		},
		ownerReferences: [{kind: 'WorkloadGroup', name: group.name, controller: true}],
		spec: {
			address: node.addresses[0]!,
			labels,
			serviceAccount: group.serviceAccount ?? '',
			ports: group.ports ?? {},
			...(node.network === '' ? {} : {network: node.network}),
			...(node.locality === '' ? {} : {locality: node.locality}),
		},
		status: {conditions: []},
		nodeName: node.name,
	};
}

/** istiod returns these as plain errors, so the client sees code Unknown. */
function checkIdentity(identity: ParsedIdentity | undefined, entry: WorkloadEntry): void {
	const refuse = (message: string) => new RegistrationError({code: 'unknown', message});
	if (!identity) throw refuse('registration of WorkloadEntry requires a verified identity');
	const what = 'registration of WorkloadEntry';
	if (identity.namespace !== entry.namespace) {
		throw refuse(`${what} namespace mismatch: "${identity.namespace}" vs "${entry.namespace}"`);
	}
	const {serviceAccount} = entry.spec;
	if (serviceAccount !== '' && identity.serviceAccount !== serviceAccount) {
		throw refuse(`${what} service account mismatch: "${identity.serviceAccount}" vs "${serviceAccount}"`);
	}
}
