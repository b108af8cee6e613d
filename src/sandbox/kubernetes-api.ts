import type {IncomingMessage, ServerResponse} from 'node:http';
import {createServer, type Server} from 'node:https';
import type {AddressInfo} from 'node:net';
import type {Running} from '../lifecycle/index.ts';
import {never} from '../lifecycle/index.ts';
import {CertificateAuthority} from './ca.ts';
import {
	apiVersion,
	type JsonMap,
	type Kind,
	KubernetesStore,
	kinds,
	mapOf,
	Refusal,
	type StoredObject,
} from './kubernetes-store.ts';

/** As a Role: verbs on resources, `workloadentries/status` apart from `workloadentries`. */
export interface Rule {
	readonly namespace: string;
	readonly resources: readonly string[];
	readonly verbs: readonly string[];
}

export interface KubernetesApiOptions {
	readonly port?: number;
	/** Token → user name and what it may do. */
	readonly users?: Readonly<Record<string, {readonly name: string; readonly rules: readonly Rule[]}>>;
	/** Of WorkloadEntries, after each change. */
	readonly onEntry?: (entry: StoredObject, isGone: boolean) => void;
}

export interface KubernetesApi extends Running {
	/** `https://localhost:PORT`. */
	readonly url: string;
	readonly rootPem: string;
	/** `VERB RESOURCE[/SUBRESOURCE] NAME CODE`, one for each request. */
	readonly requests: readonly string[];
	readonly entries: () => readonly StoredObject[];
	/** As somebody with every right. @throws Refusal */
	apply(kind: 'WorkloadEntry' | 'WorkloadGroup', object: JsonMap): StoredObject;
	remove(kind: 'WorkloadEntry' | 'WorkloadGroup', namespace: string, name: string): void;
	setUser(token: string, user: {readonly name: string; readonly rules: readonly Rule[]} | undefined): void;
	/** Called before each write is done, so that somebody else can be first. */
	beforeWrite: ((verb: string) => void) | undefined;
	/** Connections are taken and nothing is said. */
	hang(isOn: boolean): void;
	/** Refuses connections; objects stay. */
	close(): Promise<void>;
	open(): Promise<void>;
}

const mergePatch = 'application/merge-patch+json';
const jsonPatch = 'application/json-patch+json';

/**
 * The part of a Kubernetes API server that a WorkloadEntry needs: TLS, bearer tokens, RBAC, custom resources with their status
 * as a subresource, resourceVersion, merge patches. What it refuses, and how, was compared with apiextensions-apiserver 1.36.
 */
export async function startKubernetesApi(options: KubernetesApiOptions = {}): Promise<KubernetesApi> {
	const ca = await CertificateAuthority.create();
	const {certPem, keyPem} = await ca.issueServerCertificate(['localhost']);
	const users = new Map(Object.entries(options.users ?? {}));
	const requests: string[] = [];
	const store = new KubernetesStore((kind, object, isGone) => {
		if (kind.kind === 'WorkloadEntry') options.onEntry?.(object, isGone);
	});
	let port = options.port ?? 0;
	let isHanging = false;
	let server: Server | undefined;

	const answer = (request: IncomingMessage, body: string): {code: number; body: unknown; note: string} => {
		const path = new URL(request.url ?? '/', 'https://x').pathname;
		const [, namespace = '', plural = '', name = '', subresource = '', ...more] =
			/^\/apis\/networking\.istio\.io\/v1\/namespaces\/([^/]+)\/([^/]+)(?:\/([^/]+))?(?:\/([^/]+))?(.*)$/.exec(path) ??
			[];
		const verb = verbs[request.method ?? ''] ?? '';
		const what = subresource ? `${plural}/${subresource}` : plural;
		const note = `${verb} ${what} ${name || String(mapOf(mapOf(parse(body))['metadata'])['name'] ?? '')}`;
		try {
			const token = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1];
			const user = token === undefined ? undefined : users.get(token);
			if (token !== undefined && !user) throw new Refusal(401, 'Unauthorized', 'Unauthorized');
			const isAllowed = user?.rules.some(
				rule => rule.namespace === namespace && rule.resources.includes(what) && rule.verbs.includes(verb),
			);
			// Before anything is looked up: who may not see it learns nothing of it.
			if (!isAllowed)
				throw new Refusal(
					403,
					'Forbidden',
					`${plural}.networking.istio.io${name && ` "${name}"`} is forbidden: User "${user?.name ?? 'system:anonymous'}" cannot ${verb} resource "${what}" in API group "networking.istio.io" in the namespace "${namespace}"`,
				);
			const kind = kinds.find(each => each.plural === plural);
			if (!kind || more.join('') !== '' || (subresource && (subresource !== 'status' || !kind.hasStatus)))
				return {code: 404, body: '404 page not found\n', note};
			return {...act({request, kind, verb, namespace, name, isStatus: subresource === 'status', body}), note};
		} catch (error) {
			if (!(error instanceof Refusal)) throw error;
			return {code: error.code, body: statusOf(error), note};
		}
	};

	const act = (call: {
		readonly request: IncomingMessage;
		readonly kind: Kind;
		readonly verb: string;
		readonly namespace: string;
		readonly name: string;
		readonly isStatus: boolean;
		readonly body: string;
	}): {code: number; body: unknown} => {
		const {request, kind, verb, namespace, name, isStatus, body} = call;
		if (verb === 'get') return {code: 200, body: store.get(kind, namespace, name)};
		api.beforeWrite?.(verb);
		if (verb === 'patch') {
			const type = request.headers['content-type'];
			if (type !== mergePatch)
				throw new Refusal(
					415,
					'UnsupportedMediaType',
					`the body of the request was in an unknown format - accepted media types include: ${jsonPatch}, ${mergePatch}, application/apply-patch+yaml`,
				);
			return {code: 200, body: store.merge(kind, namespace, name, readMap(body), isStatus)};
		}
		if (verb === 'create') return {code: 201, body: store.create(kind, namespace, readMap(body))};
		if (verb === 'update') return {code: 200, body: store.update(kind, namespace, name, readMap(body), isStatus)};
		if (verb !== 'delete') throw new Refusal(405, 'MethodNotAllowed', 'the server does not allow this method');
		const gone = store.delete(kind, namespace, name, body === '' ? {} : readMap(body));
		const details = {name, group: 'networking.istio.io', kind: kind.plural, uid: gone.metadata.uid};
		return {code: 200, body: {kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Success', details}};
	};

	const onRequest = (request: IncomingMessage, response: ServerResponse): void => {
		const chunks: Buffer[] = [];
		request.on('data', (chunk: Buffer) => chunks.push(chunk));
		request.on('end', () => {
			if (isHanging) return;
			const {code, body, note} = answer(request, Buffer.concat(chunks).toString('utf8'));
			requests.push(`${note} ${code}`);
			const isText = typeof body === 'string';
			response.writeHead(code, {'content-type': isText ? 'text/plain; charset=utf-8' : 'application/json'});
			response.end(isText ? body : `${JSON.stringify(body)}\n`);
		});
	};

	const open = async (): Promise<void> => {
		const next = createServer({cert: certPem, key: keyPem}, onRequest);
		await new Promise<void>((resolve, reject) => {
			next.once('error', reject);
			next.listen(port, 'localhost', resolve);
		});
		server = next;
		({port} = next.address() as AddressInfo);
	};
	const close = async (): Promise<void> => {
		const old = server;
		server = undefined;
		old?.closeAllConnections();
		await new Promise<void>(resolve => (old ? old.close(() => resolve()) : resolve()));
	};
	const kindOf = (name: string): Kind => kinds.find(({kind}) => kind === name)!;
	await open();
	const api: KubernetesApi = {
		finished: never,
		get url() {
			return `https://localhost:${port}`;
		},
		rootPem: ca.rootsPem,
		requests,
		entries: () => store.list(kindOf('WorkloadEntry')),
		apply: (name, object) => {
			const kind = kindOf(name);
			const metadata = mapOf(object['metadata']);
			const namespace = String(metadata['namespace']);
			const whole = {apiVersion, kind: name, ...object};
			const isThere = store.list(kind).some(each => each.metadata.name === metadata['name']);
			if (!isThere) return store.create(kind, namespace, whole);
			return store.merge(kind, namespace, String(metadata['name']), whole, false);
		},
		remove: (name, namespace, object) => void store.delete(kindOf(name), namespace, object, {}),
		setUser: (token, user) => {
			if (user) users.set(token, user);
			else users.delete(token);
		},
		beforeWrite: undefined,
		hang: isOn => {
			isHanging = isOn;
		},
		close,
		open,
		stop: close,
	};
	return api;
}

const verbs: Readonly<Record<string, string>> = {
	GET: 'get',
	POST: 'create',
	PUT: 'update',
	PATCH: 'patch',
	DELETE: 'delete',
};

function parse(text: string): unknown {
	try {
		return JSON.parse(text);
	} catch {
		// What is no JSON is refused where it is used.
		return undefined;
	}
}

function readMap(text: string): JsonMap {
	const value = parse(text);
	if (typeof value !== 'object' || value === null || Array.isArray(value))
		throw new Refusal(400, 'BadRequest', 'the object provided is unrecognized');
	return value as JsonMap;
}

const statusOf = ({code, reason, message}: Refusal) => ({
	kind: 'Status',
	apiVersion: 'v1',
	metadata: {},
	status: 'Failure',
	message,
	reason,
	code,
});
