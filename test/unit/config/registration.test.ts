import test from 'ava';
import {loadConfig} from '../../../src/config/index.ts';
import {bundleFiles, host, memoryReader, problemsOf} from './sources.ts';

const load = (argv: Record<string, string>, bundle: 'autoregister' | 'plain' = 'autoregister') =>
	loadConfig({argv, env: {}, host, files: memoryReader(bundleFiles(bundle))});

const server = {
	'registration-kubernetes-server': 'https://k8s.example:6443',
	'registration-kubernetes-ca': '/k/ca.pem',
	'registration-kubernetes-token': '/k/token',
};
const direct = {'registration-mode': 'direct'};

test('registration › by istiod, unless told otherwise', t => {
	const {config} = load({});
	t.deepEqual(config.registration, {mode: 'auto'});
	t.not(config.workload.group, undefined);
});

test('registration › direct or off, the stream names no group', t => {
	const {config} = load({...direct, ...server});
	t.is(config.workload.group, undefined);
	t.like(config.registration, {
		mode: 'direct',
		group: load({}).config.workload.group,
		entryName: undefined,
		checkMs: 60_000,
		stateDir: '/var/lib/onramp/registration',
		kubernetes: {
			kind: 'server',
			server: 'https://k8s.example:6443',
			trustAnchor: {kind: 'file', path: '/k/ca.pem'},
			tokenPath: '/k/token',
		},
	});
	t.is(load({'registration-mode': 'off'}).config.workload.group, undefined);
});

test('registration › direct, an entry has health as with istiod', t => {
	const probed = {...direct, ...server, 'health-mode': 'always'};
	t.true(load(probed).config.health.isReported);
	t.false(load({...probed, 'registration-mode': 'off'}).config.health.isReported);
});

test('registration › a bundle made without --autoregister names the group as the workload', t => {
	const {config} = load({...direct, 'registration-kubernetes-kubeconfig': '/k/config'}, 'plain');
	t.like(config.registration, {group: config.workload.metadata['WORKLOAD_NAME'], kubernetes: {kind: 'kubeconfig'}});
});

test('registration › direct needs a way to the API, and only one', t => {
	t.regex(problemsOf(() => load(direct)).join(), /nothing says how the Kubernetes API is reached/);
	const {'registration-kubernetes-ca': _, ...rest} = server;
	t.regex(problemsOf(() => load({...direct, ...rest})).join(), /needs ca, too/);
	const both = {...direct, ...server, 'registration-kubernetes-kubeconfig': '/k/config'};
	t.regex(problemsOf(() => load(both)).join(), /kubeconfig is set, and so is what stands instead/);
});

test('registration › direct and an entry that istiod is to look after contradict each other', t => {
	const handed = {...direct, ...server, 'workload-metadata': 'WORKLOAD_ENTRY=x'};
	t.regex(problemsOf(() => load(handed)).join(), /WORKLOAD_ENTRY hands the entry to istiod/);
});

for (const url of ['http://k8s', 'k8s:6443', 'https://u:p@k8s', 'https://k8s/?a'])
	test(`registration › ${url} is no server of the API`, t => {
		t.is(problemsOf(() => load({...direct, ...server, 'registration-kubernetes-server': url})).length > 0, true);
	});
