import {request} from 'node:https';
import test from 'ava';
import {type Rule, startKubernetesApi} from '../../../src/sandbox/index.ts';
import {applyMergePatch} from '../../../src/sandbox/kubernetes-store.ts';

/** Verbs, answers and texts are those of apiextensions-apiserver 1.36 with the CRDs of Istio. */
const namespace = 'ns';
const rules: Rule[] = [
	{namespace, resources: ['workloadentries'], verbs: ['get', 'create', 'update', 'patch', 'delete']},
	{namespace, resources: ['workloadentries/status'], verbs: ['patch']},
];
const merge = 'application/merge-patch+json';

interface Answer {
	readonly code: number;
	// biome-ignore lint/suspicious/noExplicitAny: whatever a server may answer
	readonly body: any;
}

async function setUp(t: {teardown(end: () => unknown): void}) {
	const api = await startKubernetesApi({users: {all: {name: 'all', rules}, poor: {name: 'poor', rules: []}}});
	t.teardown(() => api.stop());
	const send = (method: string, path: string, body?: unknown, type = 'application/json', token = 'all') =>
		new Promise<Answer>((resolve, reject) => {
			const url = `${api.url}/apis/networking.istio.io/v1/namespaces/${namespace}/workloadentries${path}`;
			const payload = body === undefined ? '' : JSON.stringify(body);
			const length = Buffer.byteLength(payload);
			const headers = {authorization: `Bearer ${token}`, 'content-type': type, 'content-length': length};
			const outgoing = request(url, {method, ca: api.rootPem, agent: false, headers}, incoming => {
				let text = '';
				incoming.on('data', chunk => {
					text += chunk;
				});
				incoming.on('end', () => resolve({code: incoming.statusCode!, body: JSON.parse(text)}));
			});
			outgoing.on('error', reject);
			outgoing.end(payload);
		});
	const entry = (spec: unknown = {address: '10.0.0.5'}, metadata = {}) => ({
		apiVersion: 'networking.istio.io/v1',
		kind: 'WorkloadEntry',
		metadata: {name: 'a', ...metadata},
		spec,
		status: {conditions: []},
	});
	return {send, entry};
}

test('kubernetes api › who is not known, and what is not allowed, before what is not there', async t => {
	const {send, entry} = await setUp(t);
	t.like(await send('GET', '/a', undefined, merge, 'nobody'), {code: 401, body: {reason: 'Unauthorized'}});
	const {code, body} = await send('POST', '', entry(), 'application/json', 'poor');
	t.is(code, 403);
	t.is(
		body.message,
		'workloadentries.networking.istio.io is forbidden: User "poor" cannot create resource "workloadentries" in API group "networking.istio.io" in the namespace "ns"',
	);
	t.like(await send('GET', '/a'), {
		code: 404,
		body: {reason: 'NotFound', message: 'workloadentries.networking.istio.io "a" not found'},
	});
});

test('kubernetes api › the object and its status are written apart', async t => {
	const {send, entry} = await setUp(t);
	const made = await send('POST', '', entry());
	t.is(made.code, 201);
	t.is(made.body.status, undefined);
	t.like(await send('POST', '', entry()), {code: 409, body: {reason: 'AlreadyExists'}});
	const conditions = [{type: 'Healthy', status: 'True'}];
	const patched = await send('PATCH', '/a/status', {spec: {address: 'x'}, status: {conditions}}, merge);
	t.like(patched.body, {spec: {address: '10.0.0.5'}, status: {conditions}});
	t.is(patched.body.metadata.generation, 1);
	const put = await send('PUT', '/a', {...patched.body, spec: {address: '10.0.0.6'}, status: {}});
	t.like(put.body, {spec: {address: '10.0.0.6'}, status: {conditions}});
	t.is(put.body.metadata.generation, 2);
	const same = await send('PUT', '/a', put.body);
	t.is(same.body.metadata.resourceVersion, put.body.metadata.resourceVersion);
});

test('kubernetes api › what was read before somebody else wrote is not written', async t => {
	const {send, entry} = await setUp(t);
	const {body: first} = await send('POST', '', entry());
	await send('PUT', '/a', {...first, spec: {address: '10.0.0.6'}});
	const stale = {code: 409, body: {reason: 'Conflict'}};
	t.like(await send('PUT', '/a', {...first, spec: {address: '10.0.0.7'}}), stale);
	const {resourceVersion, uid} = first.metadata;
	t.like(await send('PATCH', '/a/status', {metadata: {resourceVersion}, status: {}}, merge), stale);
	t.like(await send('DELETE', '/a', {preconditions: {resourceVersion}}), stale);
	t.like(await send('DELETE', '/a', {preconditions: {uid: 'another'}}), stale);
	t.like(await send('PUT', '/a', entry()), {code: 422, body: {reason: 'Invalid'}});
	t.like(await send('DELETE', '/a', {preconditions: {uid}}), {code: 200, body: {kind: 'Status', status: 'Success'}});
});

test('kubernetes api › custom resources take no strategic merge patch, and no label that is none', async t => {
	const {send, entry} = await setUp(t);
	await send('POST', '', entry());
	t.like(await send('PATCH', '/a/status', {}, 'application/strategic-merge-patch+json'), {code: 415});
	const labelled = entry({}, {name: 'b', labels: {zone: 'r/z'}});
	t.like(await send('POST', '', labelled), {code: 422, body: {reason: 'Invalid'}});
});

test('merge patch › the example of RFC 7386', t => {
	const before = {
		title: 'Goodbye!',
		author: {givenName: 'John', familyName: 'Doe'},
		tags: ['example', 'sample'],
		content: 'c',
	};
	const patch = {title: 'Hello!', phoneNumber: '+01', author: {familyName: null}, tags: ['example']};
	t.deepEqual(applyMergePatch(before, patch), {
		title: 'Hello!',
		author: {givenName: 'John'},
		tags: ['example'],
		content: 'c',
		phoneNumber: '+01',
	});
});
