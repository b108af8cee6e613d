import test from 'ava';
import type {ApiObject} from '../../../src/kubernetes/index.ts';
import {
	checkOwner,
	type EntryWish,
	mergeEntry,
	renderEntry,
	renderHealth,
	saysHealth,
} from '../../../src/registration/direct-entry.ts';
import {workload} from '../control-plane/world.ts';

const group = (spec: Record<string, unknown>, name = 'shop'): ApiObject => ({
	metadata: {name, namespace: 'bar', uid: 'g-1', resourceVersion: '1'},
	spec,
});

const wish = (change: Partial<EntryWish> = {}): EntryWish => ({
	group: group({}),
	workload,
	name: 'shop-10.0.0.5',
	address: '10.0.0.5',
	instance: 'me',
	hasHealth: false,
	...change,
});

const stored = (body: unknown, more: Record<string, unknown> = {}): ApiObject => {
	const {metadata, ...rest} = body as ApiObject;
	return {...rest, metadata: {...metadata, uid: 'e-1', resourceVersion: '7', ...more}} as ApiObject;
};

const messageOf = (act: () => void): string => {
	try {
		act();
		return '';
	} catch (error) {
		return (error as Error).message;
	}
};

test('direct entry › labels of the template, of the group, of the VM, the later over the former, in object and spec', t => {
	const {metadata, spec} = renderEntry(
		wish({
			group: group({
				metadata: {labels: {a: 'group', b: 'group'}},
				template: {labels: {a: 'template', b: 'template', c: 'template'}, ports: {http: 8080}, weight: 3},
			}),
			workload: {...workload, labels: {b: 'vm', 'istio-locality': 'r.z'}},
		}),
	);
	const labels = {a: 'group', b: 'vm', c: 'template', 'service.istio.io/workload-name': 'shop'};
	t.deepEqual(metadata.labels, labels);
	t.deepEqual(spec, {labels, ports: {http: 8080}, weight: 3, address: '10.0.0.5', serviceAccount: 'vm'});
});

test('direct entry › has none of the annotations by which istiod keeps, deletes or empties entries', t => {
	const annotations = {
		...{'istio.io/autoRegistrationGroup': 'x', 'istio.io/workloadController': 'x'},
		...{'istio.io/connectedAt': 'x', 'istio.io/disconnectedAt': 'x', kept: 'y'},
	};
	const body = renderEntry(wish({group: group({metadata: {annotations}}), hasHealth: true}));
	const expected = {
		...{kept: 'y', 'onramp/instance': 'me', 'onramp/machine': 'vm1'},
		'proxy.istio.io/health-checks-enabled': 'true',
	};
	t.deepEqual(body.metadata.annotations, expected);
	const adopted = mergeEntry(stored(body, {annotations: {...expected, ...annotations, theirs: 'z'}}), body);
	t.deepEqual(adopted?.metadata.annotations, {...expected, theirs: 'z'}, 'nor when somebody has added them since');
});

test('direct entry › network and locality are ours where we have them, else the template’s', t => {
	const template = {network: 'net-t', locality: 'r/t'};
	const of = (change: Partial<typeof workload>) => {
		const {network, locality} = renderEntry(wish({group: group({template}), workload: {...workload, ...change}})).spec;
		return [network, locality];
	};
	t.deepEqual(of({}), ['net-t', 'r/t']);
	t.deepEqual(of({metadata: {NETWORK: 'net-v'}, locality: 'r/v'}), ['net-v', 'r/v']);
});

test('direct entry › a group for another service account is refused, as callers would not take our certificate', t => {
	const error = t.throws(() => renderEntry(wish({group: group({template: {serviceAccount: 'other'}})})), {
		code: 'registration.service_account',
	} as never);
	t.regex(error.message, /it is for service account other, and we are vm$/);
});

test('direct entry › what is right is not written again, whatever order the API gives it in', t => {
	const body = renderEntry(wish({group: group({template: {ports: {a: 1, b: 2}}})}));
	const {spec, ...rest} = body;
	const turned = Object.fromEntries(Object.entries(spec).toReversed());
	t.is(mergeEntry(stored({...rest, spec: turned}), body), undefined);
	const spoiled = mergeEntry(stored({...rest, spec: {...spec, address: '10.9.9.9'}}), body);
	t.is(spoiled?.spec?.['address'], '10.0.0.5');
	t.is(spoiled?.metadata.resourceVersion, '7', 'over that very version');
	const labelled = mergeEntry(stored({...body, metadata: {...body.metadata, labels: {}}}), body);
	t.deepEqual(labelled?.metadata.labels, body.metadata.labels);
});

test('direct entry › an entry that does not want health any more loses the annotation', t => {
	const before = stored(renderEntry(wish({hasHealth: true})));
	const merged = mergeEntry(before, renderEntry(wish()));
	t.false('proxy.istio.io/health-checks-enabled' in (merged?.metadata.annotations ?? {}));
});

test('direct entry › whose it is, is said, and what to do', t => {
	const of = (annotations: Record<string, string>) =>
		messageOf(() => checkOwner(stored(renderEntry(wish()), {annotations}), 'me'));
	t.is(of({'onramp/instance': 'me'}), '');
	t.is(
		of({'onramp/instance': 'you', 'onramp/machine': 'vm2'}),
		'register as WorkloadEntry bar/shop-10.0.0.5: it is there already, at 10.0.0.5, and belongs to another machine (vm2, instance you)',
	);
	t.regex(of({'istio.io/autoRegistrationGroup': 'shop'}), /istiod has made it by auto-registration$/);
	t.regex(of({}), /somebody has made it by hand$/);
});

test('direct entry › health is written as istiod writes it; conditions of others and the time of the change stay', t => {
	const at = (seconds: number) => new Date(seconds * 1000);
	const first = renderHealth(stored(renderEntry(wish())), {isHealthy: true, message: ''}, at(1)) as ApiObject;
	const time = '1970-01-01T00:00:01.000Z';
	t.deepEqual(first, {
		metadata: {resourceVersion: '7'},
		status: {conditions: [{type: 'Healthy', status: 'True', lastProbeTime: time, lastTransitionTime: time}]},
	} as never);
	const other = {type: 'Reconciled', status: 'True'};
	const entry = {...stored(renderEntry(wish())), status: {conditions: [other, ...first.status!.conditions!]}};
	const again = renderHealth(entry, {isHealthy: true, message: ''}, at(9)) as ApiObject;
	t.deepEqual(again.status?.conditions, [
		other,
		{type: 'Healthy', status: 'True', lastProbeTime: '1970-01-01T00:00:09.000Z', lastTransitionTime: time},
	]);
	const bad = renderHealth(entry, {isHealthy: false, message: 'why'}, at(9)) as ApiObject;
	t.like(bad.status?.conditions?.[1], {
		status: 'False',
		message: 'why',
		lastTransitionTime: '1970-01-01T00:00:09.000Z',
	});
	t.true(saysHealth(entry, {isHealthy: true, message: 'of no matter'}));
	t.false(saysHealth(entry, {isHealthy: false, message: 'why'}));
	const told = {...entry, ...{status: bad.status}} as ApiObject;
	t.true(saysHealth(told, {isHealthy: false, message: 'why'}));
	t.false(saysHealth(told, {isHealthy: false, message: 'another'}));
});
