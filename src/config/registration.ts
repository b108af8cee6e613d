import {join} from 'node:path';
import {byDefault, type Resolver} from './resolver.ts';
import {table} from './settings.ts';
import type {KubernetesConfig, RegistrationConfig, WorkloadConfig} from './types.ts';

type Asked = Pick<WorkloadConfig, 'group' | 'metadata'>;

/** @param asked - a bundle made without `--autoregister` names the group as the workload's name alone */
export function readRegistration(resolver: Resolver, {group, metadata}: Asked, stateDir: string): RegistrationConfig {
	const mode = resolver.take(table.registrationMode);
	const own = resolver.origins.get(table.registrationMode.leaf)!;
	const entry = resolver.optional(table.registrationEntry);
	const checkMs = resolver.take(table.registrationCheck);
	const kubernetes = readKubernetes(resolver);
	if (mode !== 'direct') {
		for (const leaf of leaves) resolver.origins.delete(leaf);
		return {mode};
	}
	const from = group ?? metadata['WORKLOAD_NAME'];
	const {findings} = resolver;
	if (!from)
		findings.problem(
			own.place,
			'registration.mode is direct, and no WorkloadGroup is named',
			'set workload.group: the entry is made from its template',
		);
	if (!kubernetes)
		findings.problem(
			own.place,
			'registration.mode is direct, and nothing says how the Kubernetes API is reached',
			'set registration.kubernetes.kubeconfig, or registration.kubernetes.server with .ca and .token; docs/registration.md',
		);
	if (metadata['WORKLOAD_ENTRY'])
		findings.problem(
			own.place,
			'registration.mode is direct, and metadata WORKLOAD_ENTRY hands the entry to istiod',
			'take WORKLOAD_ENTRY out of workload.metadata and of the bundle',
		);
	if (!from || !kubernetes) return {mode: 'off'};
	resolver.note('registration.group', resolver.origins.get(table.group.leaf) ?? byDefault);
	resolver.note('registration.entryName', entry?.origin ?? byDefault);
	resolver.note('registration.stateDir', resolver.origins.get(table.stateDir.leaf) ?? byDefault);
	return {
		mode,
		group: from,
		entryName: entry?.value,
		checkMs,
		kubernetes,
		stateDir: join(stateDir, 'registration'),
	};
}

const leaves = [table.registrationEntry, table.registrationCheck, table.kubeconfig]
	.map(({leaf}) => leaf)
	.concat(['server', 'trustAnchor', 'tokenPath'].map(name => `registration.kubernetes.${name}`));

function readKubernetes(resolver: Resolver): KubernetesConfig | undefined {
	const kubeconfig = resolver.optional(table.kubeconfig);
	const server = resolver.optional(table.kubernetesServer);
	const ca = resolver.optional(table.kubernetesCa);
	const token = resolver.optional(table.kubernetesToken);
	const rest = server ?? ca ?? token;
	if (kubeconfig) {
		if (rest)
			resolver.findings.problem(
				kubeconfig.place,
				'registration.kubernetes.kubeconfig is set, and so is what stands instead of it',
				'keep either the kubeconfig, or server, ca and token',
			);
		resolver.origins.delete(table.kubeconfig.leaf);
		for (const name of ['kind', 'path']) resolver.note(`registration.kubernetes.${name}`, kubeconfig.origin);
		return {kind: 'kubeconfig', path: kubeconfig.value};
	}
	if (!rest) return undefined;
	if (server && ca && token) {
		resolver.note('registration.kubernetes.kind', server.origin);
		return {kind: 'server', server: server.value, trustAnchor: ca.value, tokenPath: token.value};
	}
	const missing = [!server && 'server', !ca && 'ca', !token && 'token'].filter(Boolean).join(' and ');
	resolver.findings.problem(
		rest.place,
		`registration.kubernetes needs ${missing}, too`,
		'set server, ca and token together, or a kubeconfig',
	);
	return undefined;
}
