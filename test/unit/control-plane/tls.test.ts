import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {rootCertificates} from 'node:tls';
import test, {type ExecutionContext} from 'ava';
import {isPresentable, loadRoots} from '../../../src/control-plane/tls.ts';
import {AgentError} from '../../../src/errors.ts';
import {Secret} from '../../../src/log.ts';
import {createCa} from '../identity/test-ca.ts';
import {workload} from './world.ts';

async function rootFile(t: ExecutionContext, content: string | Buffer): Promise<string> {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-roots-'));
	t.teardown(() => rm(directory, {recursive: true}));
	const path = join(directory, 'root-cert.pem');
	await writeFile(path, content);
	return path;
}

const count = (roots: Buffer): number => roots.toString().match(/BEGIN CERTIFICATE/g)?.length ?? 0;

test('roots › are those of the file and those learned since, each once', async t => {
	const [old, next] = [await createCa(), await createCa()];
	const path = await rootFile(t, `# the mesh's root\n${old.pem}`);
	const anchor = {kind: 'file', path} as const;
	t.is(count(await loadRoots(anchor, '')), 1);
	const both = await loadRoots(anchor, old.pem + next.pem);
	t.is(count(both), 2);
	t.true(both.includes(next.pem.trim()));
});

test('roots › of the system are as many as Node has, and those learned since', async t => {
	const ca = await createCa();
	t.is(count(await loadRoots({kind: 'system'}, '')), rootCertificates.length);
	t.is(count(await loadRoots({kind: 'system'}, ca.pem)), rootCertificates.length + 1);
});

test('roots › a file that is replaced is read anew', async t => {
	const [old, next] = [await createCa(), await createCa()];
	const path = await rootFile(t, old.pem);
	await loadRoots({kind: 'file', path}, '');
	await writeFile(path, next.pem);
	t.is((await loadRoots({kind: 'file', path}, '')).toString().trim(), next.pem.trim());
});

const damaged = '-----BEGIN CERTIFICATE-----\nTm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n';
for (const [what, content, says] of [
	['empty', '', /: no PEM certificate in it$/],
	['cut short', '-----BEGIN CERTIFICATE-----\nMIIB', /: no PEM certificate in it$/],
	['binary', Buffer.from([0, 255, 1, 254]), /: no PEM certificate in it$/],
	['damaged', damaged, /: certificate 1 is damaged$/],
] as const) {
	test(`roots › a file that is ${what} is told by its path`, async t => {
		const path = await rootFile(t, content);
		const error = await t.throwsAsync(loadRoots({kind: 'file', path}, ''), {instanceOf: AgentError});
		t.is(error!.code, 'control_plane.root_unusable');
		t.true(error!.message.startsWith(`read root certificate ${path}: `));
		t.regex(error!.message, says);
		t.regex(error!.hint!, /onramp join BUNDLE/);
	});
}

test('roots › a second certificate that is damaged is told by its number', async t => {
	const path = await rootFile(t, (await createCa()).pem + damaged);
	await t.throwsAsync(loadRoots({kind: 'file', path}, ''), {message: /: certificate 2 is damaged$/});
});

test('roots › a file that is not there is told by its path', async t => {
	const error = await t.throwsAsync(loadRoots({kind: 'file', path: '/nonexistent/root.pem'}, ''), {
		instanceOf: AgentError,
	});
	t.is(error!.code, 'control_plane.root_unusable');
	t.regex(error!.message, /^read root certificate \/nonexistent\/root\.pem: ENOENT/);
});

const now = new Date('2030-01-01T00:00:00Z');
for (const [what, spiffeId, notAfter, expected] of [
	['ours and valid', 'spiffe://cluster.local/ns/bar/sa/vm', '2030-01-01T00:00:01Z', true],
	['ours, of another trust domain', 'spiffe://old.example/ns/bar/sa/vm', '2030-01-02T00:00:00Z', true],
	['expired', 'spiffe://cluster.local/ns/bar/sa/vm', '2029-12-31T00:00:00Z', false],
	['expiring this very moment', 'spiffe://cluster.local/ns/bar/sa/vm', '2030-01-01T00:00:00Z', false],
	['of another namespace', 'spiffe://cluster.local/ns/foo/sa/vm', '2030-01-02T00:00:00Z', false],
	['of another service account', 'spiffe://cluster.local/ns/bar/sa/vm2', '2030-01-02T00:00:00Z', false],
	['of an account that ends like ours', 'spiffe://cluster.local/ns/bar/sa/my-vm', '2030-01-02T00:00:00Z', false],
	['without a name', '', '2030-01-02T00:00:00Z', false],
] as const) {
	test(`client certificate › one that is ${what} is ${expected ? '' : 'not '}shown`, t => {
		const certificate = {
			chainPem: '',
			keyPem: new Secret(''),
			notAfter: new Date(notAfter),
			spiffeId,
		};
		t.is(isPresentable(certificate, workload, now), expected);
	});
}
