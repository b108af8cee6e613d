import {once} from 'node:events';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import type {RequestListener} from 'node:http';
import {createServer} from 'node:https';
import type {AddressInfo} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {AgentError} from '../../../src/errors.ts';
import {type ApiRequest, createKubernetesClient} from '../../../src/kubernetes/index.ts';
import {CertificateAuthority} from '../../../src/sandbox/ca.ts';

const request: ApiRequest = {verb: 'get', resource: 'workloadentries', namespace: 'bar', name: 'vm'};

async function setUp(t: ExecutionContext, answer: RequestListener, names = ['localhost']) {
	const ca = await CertificateAuthority.create();
	const {certPem, keyPem} = await ca.issueServerCertificate(names);
	const server = createServer({cert: certPem, key: keyPem}, answer).listen(0, 'localhost');
	await once(server, 'listening');
	const directory = await mkdtemp(join(tmpdir(), 'onramp-client-'));
	t.teardown(async () => {
		server.closeAllConnections();
		server.close();
		await rm(directory, {recursive: true, force: true});
	});
	const [root, tokenPath] = [join(directory, 'root.pem'), join(directory, 'token')];
	await writeFile(root, ca.rootsPem);
	await writeFile(tokenPath, 'secret');
	const {port} = server.address() as AddressInfo;
	const client = createKubernetesClient(
		{kind: 'server', server: `https://localhost:${port}`, trustAnchor: {kind: 'file', path: root}, tokenPath},
		'onramp/test',
	);
	return {client, root, server, port};
}

const send = ({client}: Awaited<ReturnType<typeof setUp>>, what: Partial<ApiRequest> = {}) =>
	client.send({...request, ...what}, new AbortController().signal);

async function failureOf(sent: Promise<unknown>): Promise<AgentError> {
	const error = await sent.then(
		() => new Error('it was done'),
		(each: unknown) => each,
	);
	if (!(error instanceof AgentError)) throw error;
	return error;
}

test('kubernetes client › says who asks for what, in the form that the API takes', async t => {
	const seen: unknown[] = [];
	const world = await setUp(t, (incoming, response) => {
		let body = '';
		incoming.on('data', chunk => {
			body += chunk;
		});
		incoming.on('end', () => {
			const {authorization, 'content-type': type} = incoming.headers;
			seen.push([incoming.method, incoming.url, authorization, type, body]);
			response.end('{"kind": "WorkloadEntry", "metadata": {}}');
		});
	});
	await send(world);
	await send(world, {verb: 'create', body: {a: 1}});
	await send(world, {verb: 'update', body: {a: 1}});
	await send(world, {verb: 'patch', subresource: 'status', body: {a: 1}});
	await send(world, {verb: 'delete', body: {a: 1}});
	const path = '/apis/networking.istio.io/v1/namespaces/bar/workloadentries';
	const rest = ['Bearer secret', 'application/json', '{"a":1}'];
	t.deepEqual(seen, [
		['GET', `${path}/vm`, 'Bearer secret', undefined, ''],
		['POST', path, ...rest],
		['PUT', `${path}/vm`, ...rest],
		['PATCH', `${path}/vm/status`, 'Bearer secret', 'application/merge-patch+json', '{"a":1}'],
		['DELETE', `${path}/vm`, ...rest],
	]);
});

const statusOf = (code: number, reason: string, message: string) =>
	JSON.stringify({kind: 'Status', apiVersion: 'v1', status: 'Failure', code, reason, message});

const explains = test.macro({
	title: (_, code: number, text: string) => `kubernetes client › ${code} ${text.slice(0, 24)}`,
	async exec(t, code: number, text: string, to: string, message: RegExp, hint: RegExp, what: Partial<ApiRequest> = {}) {
		const world = await setUp(t, (_, response) => response.writeHead(code).end(text));
		const error = await failureOf(send(world, what));
		t.is(error.code, to as never);
		t.regex(error.message, /workloadentries(?:\/status)? vm in namespace bar at localhost:\d+: /, 'the place');
		t.regex(error.message, message);
		t.regex(error.hint!, hint);
		t.false(`${error.message}${error.hint}`.includes('secret'));
	},
});

test(
	explains,
	...([401, statusOf(401, 'Unauthorized', 'Unauthorized'), 'kubernetes.unauthenticated'] as const),
	/does not know us by the token in .*: expired, for another audience/,
	/kubectl create token/,
);
test(
	explains,
	...([403, statusOf(403, 'Forbidden', 'User "x" cannot patch'), 'kubernetes.forbidden'] as const),
	/the verb "patch" on workloadentries\/status is missing for the token in .* \(User "x" cannot patch\)$/,
	/^sed s\/NAMESPACE\/bar\/ \/usr\/share\/doc\/onramp\/registration\.yaml \| kubectl apply -f -;/,
	{verb: 'patch', subresource: 'status', body: {}},
);
test(explains, 404, statusOf(404, 'NotFound', 'not found'), 'kubernetes.not_found', /there is none$/, /kubectl get/);
test(explains, 404, '404 page not found\n', 'kubernetes.unsupported', /has no workloadentries of/, /Istio there 1\.22/);
test(explains, 409, statusOf(409, 'Conflict', 'modified'), 'kubernetes.conflict', /\(modified\)$/, /reads it again/);
test(explains, 422, statusOf(422, 'Invalid', 'spec.x'), 'kubernetes.invalid', /\(spec\.x\)$/, /mend what it names/);
test(explains, 503, '<html>\u001b[31mbusy', 'kubernetes.failed', /status 503 \(<html> \[31mbusy\)$/, /tries again/);
test(explains, 200, 'a page of something else', 'kubernetes.failed', /HTTP status 200 \(a page/, /what answers at/);
test(explains, 302, '', 'kubernetes.failed', /HTTP status 302$/, /what answers at/);

test('kubernetes client › a server that is not of the roots, or has another name, is not told the token', async t => {
	let asked = 0;
	const world = await setUp(t, () => asked++, ['elsewhere']);
	const named = await failureOf(send(world));
	t.is(named.code, 'kubernetes.untrusted');
	t.regex(named.message, /not believed \(.*altnames/);
	await writeFile(world.root, (await CertificateAuthority.create()).rootsPem);
	const rooted = await failureOf(send(world));
	t.is(rooted.code, 'kubernetes.untrusted');
	t.true(rooted.hint!.includes(world.root));
	t.is(asked, 0);
});

test('kubernetes client › nobody there, and an answer without end', async t => {
	const world = await setUp(t, (_, response) => {
		const timer = setInterval(() => response.write(Buffer.alloc(256 * 1024)), 1);
		response.on('close', () => clearInterval(timer));
	});
	const endless = await failureOf(send(world));
	t.is(endless.code, 'kubernetes.unreachable');
	t.regex(endless.message, /the answer is larger than 2097152 bytes$/);
	world.server.closeAllConnections();
	await new Promise(resolve => world.server.close(resolve));
	const nobody = await failureOf(send(world));
	t.is(nobody.code, 'kubernetes.unreachable');
	t.regex(nobody.message, /ECONNREFUSED/);
});

test('kubernetes client › gives up when told, with the reason it was told', async t => {
	const world = await setUp(t, () => {});
	const giveUp = new AbortController();
	const sent = world.client.send(request, giveUp.signal);
	giveUp.abort(new Error('enough'));
	await t.throwsAsync(sent, {message: 'enough'});
});
