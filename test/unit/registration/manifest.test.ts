import {readFileSync} from 'node:fs';
import test from 'ava';
import {parseAllDocuments} from 'yaml';
import {rulesFor} from '../../support/kubernetes.ts';

test('manifest › gives the rights that the agent is tested with, and no more, to an account of the same namespace', t => {
	const text = readFileSync(new URL('../../../docs/registration.yaml', import.meta.url), 'utf8');
	const objects = parseAllDocuments(text.replaceAll('NAMESPACE', 'vm-ns')).map(each => each.toJS());
	const [account, role, binding] = objects;
	t.deepEqual(
		objects.map(({kind, metadata}) => [kind, metadata]),
		['ServiceAccount', 'Role', 'RoleBinding'].map(kind => [kind, {name: 'onramp-vm', namespace: 'vm-ns'}]),
	);
	t.deepEqual(
		role.rules,
		rulesFor('vm-ns').map(({resources, verbs}) => ({apiGroups: ['networking.istio.io'], resources, verbs})),
	);
	t.like(binding.roleRef, {kind: 'Role', name: role.metadata.name});
	t.deepEqual(binding.subjects, [{kind: 'ServiceAccount', ...account.metadata}]);
});
