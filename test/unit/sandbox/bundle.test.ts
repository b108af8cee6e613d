import {mkdtemp, readdir, readFile, rm, stat} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {startSandbox} from '../../../src/sandbox/index.ts';

/** The bytes that `istioctl x workload entry configure --autoregister --ingressIP 127.0.0.1` of Istio 1.31 wrote for such a group. */
const clusterEnv = `CANONICAL_REVISION='latest'
CANONICAL_SERVICE='vm'
ISTIO_INBOUND_PORTS='8080'
ISTIO_LOCAL_EXCLUDE_PORTS='22,15090,15021,15020'
ISTIO_METAJSON_LABELS='{"app":"vm","service.istio.io/canonical-name":"vm","service.istio.io/canonical-revision":"latest"}'
ISTIO_META_AUTO_REGISTER_GROUP='vm'
ISTIO_META_CLUSTER_ID='Kubernetes'
ISTIO_META_DNS_CAPTURE='true'
ISTIO_META_MESH_ID=''
ISTIO_META_NETWORK=''
ISTIO_META_POD_PORTS='[{"name":"http","containerPort":8080,"protocol":""}]'
ISTIO_META_WORKLOAD_NAME='vm'
ISTIO_NAMESPACE='ns1'
ISTIO_SERVICE='vm.ns1'
ISTIO_SERVICE_CIDR='*'
POD_NAMESPACE='ns1'
SERVICE_ACCOUNT='vm-sa'
TRUST_DOMAIN='cluster.local'
`;

const meshYaml = `defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  proxyMetadata:
    CANONICAL_REVISION: latest
    CANONICAL_SERVICE: vm
    ISTIO_META_AUTO_REGISTER_GROUP: vm
    ISTIO_META_CLUSTER_ID: Kubernetes
    ISTIO_META_DNS_CAPTURE: "true"
    ISTIO_META_MESH_ID: ""
    ISTIO_META_NETWORK: ""
    ISTIO_META_POD_PORTS: '[{"name":"http","containerPort":8080,"protocol":""}]'
    ISTIO_META_WORKLOAD_NAME: vm
    ISTIO_METAJSON_LABELS: '{"app":"vm","service.istio.io/canonical-name":"vm","service.istio.io/canonical-revision":"latest"}'
    POD_NAMESPACE: ns1
    SERVICE_ACCOUNT: vm-sa
    TRUST_DOMAIN: cluster.local
`;

test('bundle › has the files of istioctl, to the byte', async t => {
	const directory = await mkdtemp(join(tmpdir(), 'sandbox-'));
	const sandbox = await startSandbox();
	t.teardown(async () => {
		await sandbox.stop();
		await rm(directory, {recursive: true});
	});
	sandbox.addWorkloadGroup({
		name: 'vm',
		namespace: 'ns1',
		serviceAccount: 'vm-sa',
		labels: {app: 'vm'},
		ports: {http: 8080},
	});
	await sandbox.writeBundle(directory, {group: 'vm', namespace: 'ns1'});
	const read = (name: string) => readFile(join(directory, name), 'utf8');
	t.deepEqual((await readdir(directory)).sort(), ['cluster.env', 'hosts', 'istio-token', 'mesh.yaml', 'root-cert.pem']);
	t.is(await read('cluster.env'), clusterEnv);
	t.is(await read('mesh.yaml'), meshYaml.replace('15012', String(sandbox.port)));
	t.is(await read('hosts'), '127.0.0.1 istiod.istio-system.svc\n');
	t.is(await read('root-cert.pem'), sandbox.rootPem());
	const claims = JSON.parse(Buffer.from((await read('istio-token')).split('.')[1]!, 'base64url').toString()) as object;
	t.like(claims, {aud: ['istio-ca'], sub: 'system:serviceaccount:ns1:vm-sa'});
	t.is((await stat(join(directory, 'istio-token'))).mode & 0o700, 0o700);
});

test('bundle › quotes for the shell, carries the probe, and leaves out what was not asked for', async t => {
	const directory = await mkdtemp(join(tmpdir(), 'sandbox-'));
	const sandbox = await startSandbox({trustDomain: 'example.org', clusterId: 'west'});
	t.teardown(async () => {
		await sandbox.stop();
		await rm(directory, {recursive: true});
	});
	const probe = {httpGet: {path: '/healthz', port: 8080}, periodSeconds: 2};
	sandbox.addWorkloadGroup({name: 'vm', namespace: 'ns1', labels: {note: "it's"}, probe});
	await sandbox.writeBundle(directory, {
		group: 'vm',
		namespace: 'ns1',
		isAutoRegistered: false,
		isDnsCaptured: false,
		ingressAddress: '',
		internalAddress: '10.1.2.3',
		discoveryAddress: 'mesh.example.org:443',
		proxyMetadata: {ISTIO_META_INTERCEPTION_MODE: 'NONE'},
	});
	const env = await readFile(join(directory, 'cluster.env'), 'utf8');
	t.true(env.includes(`"note":"it'"'"'s"`));
	t.regex(env, /^ISTIO_INBOUND_PORTS='\*'$/m);
	t.regex(env, /^ISTIO_SVC_IP='10\.1\.2\.3'$/m);
	t.regex(env, /^ISTIO_META_INTERCEPTION_MODE='NONE'$/m);
	t.regex(env, /^SERVICE_ACCOUNT='default'$/m);
	t.notRegex(env, /AUTO_REGISTER|DNS_CAPTURE|POD_PORTS/);
	const mesh = await readFile(join(directory, 'mesh.yaml'), 'utf8');
	t.true(mesh.includes('  discoveryAddress: mesh.example.org:443\n'));
	t.true(
		mesh.endsWith('  readinessProbe:\n    httpGet:\n      path: /healthz\n      port: 8080\n    periodSeconds: 2\n'),
	);
	t.is(await readFile(join(directory, 'hosts'), 'utf8'), '');
	await t.throwsAsync(sandbox.writeBundle(directory, {group: 'nobody', namespace: 'ns1'}), {
		message: 'workloadgroup nobody not found in namespace ns1',
	});
});
