import {mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {isIstioMachine, lookAtIstio, writeBundle} from '../../../src/cli/join/istio-machine.ts';

function rootWith(t: ExecutionContext, files: Readonly<Record<string, string>>): string {
	const root = mkdtempSync(join(tmpdir(), 'onramp-istio-'));
	t.teardown(() => rmSync(root, {recursive: true, force: true}));
	for (const [path, text] of Object.entries(files)) {
		mkdirSync(dirname(join(root, path)), {recursive: true});
		writeFileSync(join(root, path), text);
	}
	return root;
}

const usual = {
	'var/lib/istio/envoy/cluster.env': "ISTIO_NAMESPACE='bar'\n",
	'etc/istio/config/mesh': 'defaultConfig: {}\n',
	'etc/certs/root-cert.pem': 'root\n',
	'var/run/secrets/tokens/istio-token': 'token',
};

test('machine of istio › its files become a bundle that root alone can read', async t => {
	const root = rootWith(t, usual);
	t.true(isIstioMachine(root));
	const bundle = join(root, 'bundle');
	await writeBundle(await lookAtIstio(root), bundle);
	t.deepEqual(readdirSync(bundle).toSorted(), ['cluster.env', 'istio-token', 'mesh.yaml', 'root-cert.pem']);
	t.is(readFileSync(join(bundle, 'istio-token'), 'utf8'), 'token');
	t.is(statSync(join(bundle, 'istio-token')).mode & 0o777, 0o600);
	t.is(statSync(bundle).mode & 0o777, 0o700);
});

test('machine of istio › the certificate counts with its key only', async t => {
	const certs = {'etc/certs/cert-chain.pem': 'chain', 'etc/certs/key.pem': 'key'};
	t.is((await lookAtIstio(rootWith(t, usual))).certificate, undefined);
	t.is((await lookAtIstio(rootWith(t, {...usual, 'etc/certs/cert-chain.pem': 'chain'}))).certificate, undefined);
	t.deepEqual((await lookAtIstio(rootWith(t, {...usual, ...certs}))).certificate, {chainPem: 'chain', keyPem: 'key'});
});

test('machine of istio › an empty mesh configuration, as the package makes it, is none', async t => {
	const {files} = await lookAtIstio(
		rootWith(t, {...usual, 'etc/istio/config/mesh': '', 'var/lib/istio/config/mesh': 'defaultConfig: {}\n'}),
	);
	t.regex(files.get('mesh.yaml')!.path, /\/var\/lib\/istio\/config\/mesh$/);
});

test('machine of istio › what sidecar.env sets is named, and its comments are not', async t => {
	const text = '# ISTIO_SERVICE=x\nISTIO_AGENT_FLAGS="--log_output_level=debug"\n export EXEC_USER=root\n';
	const {furtherVariables} = await lookAtIstio(rootWith(t, {...usual, 'var/lib/istio/envoy/sidecar.env': text}));
	t.deepEqual(furtherVariables, ['ISTIO_AGENT_FLAGS', 'EXEC_USER']);
});
