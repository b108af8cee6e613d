import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {AgentError} from '../../../src/errors.ts';
import {loadAccess} from '../../../src/kubernetes/access.ts';

const base64 = (text: string): string => Buffer.from(text).toString('base64');

const cluster = {server: 'https://k8s.example:6443', 'certificate-authority-data': base64('ROOT')};

interface Parts {
	readonly cluster?: Record<string, unknown>;
	readonly user?: Record<string, unknown>;
	readonly root?: Record<string, unknown>;
}

async function write(t: ExecutionContext, parts: Parts, files: Record<string, string> = {}): Promise<string> {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-kubeconfig-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	for (const [name, text] of Object.entries(files)) await writeFile(join(directory, name), text);
	const path = join(directory, 'config');
	// JSON is YAML.
	await writeFile(
		path,
		JSON.stringify({
			apiVersion: 'v1',
			kind: 'Config',
			'current-context': 'here',
			contexts: [
				{name: 'other', context: {cluster: 'none', user: 'none'}},
				{name: 'here', context: {cluster: 'c', user: 'u'}},
			],
			clusters: [{name: 'c', cluster: {...cluster, ...parts.cluster}}],
			users: [{name: 'u', user: parts.user ?? {token: 'secret'}}],
			...parts.root,
		}),
	);
	return path;
}

const load = (path: string) => loadAccess({kind: 'kubeconfig', path});

async function refusalOf(path: string): Promise<AgentError> {
	try {
		await load(path);
	} catch (error) {
		if (error instanceof AgentError && error.code === 'kubernetes.access_unusable') return error;
		throw error;
	}
	throw new Error('it was taken');
}

test('kubeconfig › the current context, with material from data or from files beside it', async t => {
	const files = {'ca.pem': 'FILE ROOT', 'me.crt': 'CERT', 'me.key': 'KEY', token: 'fresh\n'};
	const plain = await load(await write(t, {}));
	t.like(plain, {rootsPem: 'ROOT', serverName: undefined, certificate: undefined});
	t.is(plain.server.href, 'https://k8s.example:6443/');
	t.is(plain.token?.reveal(), 'secret');
	t.is(JSON.stringify(plain).includes('secret'), false);
	const filed = await load(
		await write(
			t,
			{
				cluster: {
					...{'certificate-authority-data': undefined, 'certificate-authority': 'ca.pem'},
					'tls-server-name': 'kubernetes.default',
				},
				user: {token: 'old', tokenFile: 'token', 'client-certificate': 'me.crt', 'client-key-data': base64('K2')},
			},
			files,
		),
	);
	t.like(filed, {rootsPem: 'FILE ROOT', serverName: 'kubernetes.default'});
	t.is(filed.token?.reveal(), 'fresh', 'the file counts more, as it is kept fresh');
	t.is(filed.certificate?.certPem, 'CERT');
	t.is(filed.certificate?.keyPem.reveal(), 'K2');
});

test('kubeconfig › a token file is read each time', async t => {
	const path = await write(t, {user: {tokenFile: 'token'}}, {token: 'one'});
	t.is((await load(path)).token?.reveal(), 'one');
	await writeFile(join(path, '../token'), 'two');
	t.is((await load(path)).token?.reveal(), 'two');
});

const refuses = test.macro({
	title: (what = '') => `kubeconfig › refused: ${what}`,
	async exec(t, parts: Parts, message: RegExp, hint: RegExp) {
		const error = await refusalOf(await write(t, parts));
		t.regex(error.message, message);
		t.regex(error.hint!, hint);
	},
});

const ofToken = /make a token of a ServiceAccount/;
const exec = {exec: {command: '/usr/bin/aws', args: ['eks', 'get-token']}};
test('a program', refuses, {user: exec}, /user "u" has exec, which the agent does not run or use$/, ofToken);
test('a program, though there is a token, too', refuses, {user: {...exec, token: 'x'}}, /has exec/, ofToken);
test('an auth provider', refuses, {user: {'auth-provider': {name: 'gcp'}}}, /has auth-provider/, ofToken);
test('a password', refuses, {user: {username: 'a', password: 'b'}}, /has username/, ofToken);
test('impersonation', refuses, {user: {token: 'x', as: 'admin'}}, /has as,/, ofToken);
test('nobody', refuses, {user: {}}, /neither a token nor a client certificate/, /tokenFile/);
test(
	'an unchecked server',
	refuses,
	{cluster: {'insecure-skip-tls-verify': true}},
	/always checks the server/,
	/certificate-authority-data/,
);
test('plain HTTP', refuses, {cluster: {server: 'http://k8s:8080'}}, /"http:\/\/k8s:8080" is not a URL/, /mend server/);
test('a proxy', refuses, {cluster: {'proxy-url': 'http://p:3128'}}, /uses no proxy/, /directly/);
test('no current context', refuses, {root: {'current-context': ''}}, /no current-context/, /use-context/);
test('a context that is not there', refuses, {root: {'current-context': 'gone'}}, /no context "gone"/, /--minify/);
test('a user that is not there', refuses, {root: {users: []}}, /there is no user "u"/, /--minify/);

test('kubeconfig › what is cut short or no YAML is said with its place', async t => {
	const path = await write(t, {});
	for (const text of ['{"a": ', '- a\n- b\n', 'a: *x\n', '\0']) {
		await writeFile(path, text);
		const error = await refusalOf(path);
		t.true(error.message.includes(path));
		t.truthy(error.hint);
	}
});

test('access › a token that is missing, empty or more than one word is said, never shown', async t => {
	const path = await write(t, {}, {token: ' \n', many: 'secret one'});
	const of = (name: string) =>
		loadAccess({
			kind: 'server',
			server: 'https://k8s.example',
			trustAnchor: {kind: 'system'},
			tokenPath: join(path, '..', name),
		});
	t.regex((await t.throwsAsync(() => of('none')))!.message, /ENOENT/);
	t.regex((await t.throwsAsync(() => of('token')))!.message, /the file is empty$/);
	const many = await t.throwsAsync(() => of('many'));
	t.regex(many!.message, /more than one word$/);
	t.false(many!.message.includes('secret'));
});
