// A Kubernetes API beside the sandbox: what is written there, the sandbox's control plane sees.
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import type {ExecutionContext} from 'ava';
import {
	type Condition,
	type KubernetesApi,
	type Rule,
	type Sandbox,
	type StoredObject,
	startKubernetesApi,
	type WorkloadEntry,
} from '../../src/sandbox/index.ts';

/** As docs/registration.yaml gives them. */
export const rulesFor = (namespace: string): Rule[] => [
	{namespace, resources: ['workloadentries'], verbs: ['get', 'create', 'update', 'delete']},
	{namespace, resources: ['workloadentries/status'], verbs: ['patch']},
	{namespace, resources: ['workloadgroups'], verbs: ['get']},
];

export interface Kubernetes {
	readonly api: KubernetesApi;
	readonly tokenPath: string;
	readonly caPath: string;
	/** Settings of an agent that registers there. */
	readonly flags: readonly string[];
	/** From now on the sandbox has the entries, as istiod has them of the cluster. */
	feed(sandbox: Sandbox): void;
}

export async function startKubernetes(t: ExecutionContext, namespace: string): Promise<Kubernetes> {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-kubernetes-'));
	let sandbox: Sandbox | undefined;
	const api = await startKubernetesApi({
		users: {'vm-token': {name: `system:serviceaccount:${namespace}:onramp-vm`, rules: rulesFor(namespace)}},
		onEntry: (entry, isGone) => {
			const {name} = entry.metadata;
			if (isGone) sandbox?.deleteWorkloadEntry(namespace, name);
			else sandbox?.putWorkloadEntry(toEntry(entry));
		},
	});
	t.teardown(async () => {
		await api.stop();
		await rm(directory, {recursive: true, force: true});
	});
	const [tokenPath, caPath] = [join(directory, 'token'), join(directory, 'ca.pem')];
	await writeFile(tokenPath, 'vm-token\n');
	await writeFile(caPath, api.rootPem);
	return {
		api,
		tokenPath,
		caPath,
		flags: [
			...['--registration-mode', 'direct', '--registration-check', '1s'],
			...['--registration-kubernetes-server', api.url, '--registration-kubernetes-ca', caPath],
			...['--registration-kubernetes-token', tokenPath],
		],
		feed: to => {
			sandbox = to;
		},
	};
}

function toEntry({metadata, spec = {}, status}: StoredObject): WorkloadEntry {
	const {labels = {}, annotations = {}} = metadata as Partial<Record<string, Readonly<Record<string, string>>>>;
	return {
		name: metadata.name,
		namespace: metadata.namespace,
		labels,
		annotations,
		ownerReferences: [],
		spec: {serviceAccount: '', ports: {}, labels: {}, ...spec} as unknown as WorkloadEntry['spec'],
		status: {conditions: (status?.['conditions'] ?? []) as unknown as readonly Condition[]},
		nodeName: annotations['onramp/machine'] ?? '',
	};
}
