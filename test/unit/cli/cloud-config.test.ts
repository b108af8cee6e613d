import {spawnSync} from 'node:child_process';
import {mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {parse} from 'yaml';
import {renderCloudConfig} from '../../../src/cli/cloud-config/render.ts';
import {onramp} from './command.ts';

const files = {
	'cluster.env': "A='b'\n",
	'root-cert.pem': '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n',
	'istio-token': 'aaa.bbb-c_d.eee\n',
};
const bundle = join(import.meta.dirname, '../../fixtures/bundle/autoregister');

interface CloudConfig {
	readonly write_files: readonly {readonly path: string; readonly permissions: string; readonly content: string}[];
	readonly packages?: readonly string[];
	readonly runcmd: readonly (readonly string[])[];
}

const read = (text: string): CloudConfig => parse(text) as CloudConfig;
const scriptOf = (text: string): string => read(text).write_files.find(({path}) => path.endsWith('/join.sh'))!.content;

test('cloud-config › begins as cloud-init wants it, writes the bundle for root alone, and runs one script', t => {
	const text = renderCloudConfig({files, packages: [], joinFlags: ['--group', 'vm']});
	t.true(text.startsWith('#cloud-config\n'));
	const {write_files: written, packages, runcmd} = read(text);
	t.is(packages, undefined);
	t.deepEqual(runcmd, [['sh', '/run/onramp-join/join.sh']]);
	for (const {path, permissions} of written) {
		t.true(path.startsWith('/run/onramp-join/'), path);
		t.regex(permissions, /^0[67]00$/);
	}
	t.is(written.find(({path}) => path.endsWith('cluster.env'))!.content, files['cluster.env']);
	t.true(text.includes('content: aaa.bbb-c_d.eee\n'), 'on one line and as it is, or it could not be scrubbed');
	t.regex(scriptOf(text), /^onramp join \/run\/onramp-join --group vm \|\| fail/m);
});

test('cloud-config › installs what it is told, from a repository, by URL and from the disk', t => {
	const text = renderCloudConfig({
		files,
		packages: ['onramp-envoy', 'https://host/onramp 1.deb', '/root/other.rpm'],
		joinFlags: [],
	});
	t.deepEqual(read(text).packages, ['onramp-envoy']);
	const script = scriptOf(text);
	t.true(script.includes("curl -fsSL --retry 5 -o package-0.deb 'https://host/onramp 1.deb'"));
	t.true(script.includes('set -- "$@" /root/other.rpm'));
	t.throws(() => renderCloudConfig({files, packages: ['$(reboot)'], joinFlags: []}), {message: /is no package/});
});

test('cloud-config › a repository of the documentation goes behind it', t => {
	const text = renderCloudConfig({files, packages: ['onramp', 'onramp-envoy'], joinFlags: []});
	const page = readFileSync(join(import.meta.dirname, '../../../docs/install.md'), 'utf8').split(
		'\n## cloud-init\n',
	)[1]!;
	const repositories = [...page.matchAll(/^```yaml\n([\s\S]*?)^```$/gm)].map(([, yaml]) => yaml!);
	t.deepEqual(
		// Throws where a key is there twice.
		repositories.map(yaml => Object.keys(read(`${text}\n${yaml}`)).filter(key => !(key in read(text)))),
		[['apt'], ['apt'], ['yum_repos']],
	);
});

/** What the script sees of a machine. */
function makeRoot(t: ExecutionContext): string {
	const root = mkdtempSync(join(tmpdir(), 'onramp-cloud-'));
	t.teardown(() => rmSync(root, {recursive: true, force: true}));
	for (const name of ['run/onramp-join', 'etc/onramp/bundle', 'var/lib/cloud/instances/i-1', 'bin'])
		mkdirSync(join(root, name), {recursive: true});
	return root;
}

function runScript(root: string, onrampDoes: string) {
	writeFileSync(join(root, 'bin/onramp'), `#!/bin/sh\n${onrampDoes}\n`, {mode: 0o755});
	const script = scriptOf(renderCloudConfig({files, packages: [], joinFlags: []})).replaceAll(
		/\/(run|etc|var)\//g,
		`${root}/$1/`,
	);
	return spawnSync('sh', ['-c', script], {env: {PATH: `${join(root, 'bin')}:/usr/bin:/bin`}, encoding: 'utf8'});
}

test('cloud-config › the script scrubs the token, whatever joining ends with, and leaves all else as it was', t => {
	for (const code of [0, 1]) {
		const root = makeRoot(t);
		const pickled = Buffer.from([0x80, 0, 0xff, ...Buffer.from('aaa.bbb-c_d.eee'), 0xfe, 0]);
		writeFileSync(join(root, 'var/lib/cloud/instances/i-1/obj.pkl'), pickled, {mode: 0o400});
		writeFileSync(join(root, 'var/lib/cloud/instances/i-1/other'), 'aaaxbbb-c_dxeee\n');
		writeFileSync(join(root, 'run/onramp-join/istio-token'), 'aaa.bbb-c_d.eee');
		t.is(runScript(root, `exit ${code}`).status, code);
		const scrubbed = readFileSync(join(root, 'var/lib/cloud/instances/i-1/obj.pkl'));
		t.deepEqual(scrubbed, Buffer.from([0x80, 0, 0xff, ...Buffer.from('x'.repeat(15)), 0xfe, 0]));
		t.is(readFileSync(join(root, 'var/lib/cloud/instances/i-1/other'), 'utf8'), 'aaaxbbb-c_dxeee\n');
		t.is(spawnSync('ls', [join(root, 'run/onramp-join')]).status, 2, 'the directory is gone');
	}
});

test('cloud-config › run again with a token that is scrubbed, the script joins with the one that the machine has', t => {
	const root = makeRoot(t);
	const given = join(root, 'run/onramp-join/istio-token');
	writeFileSync(given, 'xxxxxxxxxxxxxxx\n');
	const {status, stderr} = runScript(root, 'echo joined');
	t.is(status, 1);
	t.regex(stderr, /^onramp: the token of this user-data was scrubbed by an earlier run, and this machine has none$/m);
	mkdirSync(join(root, 'run/onramp-join'));
	writeFileSync(given, 'xxxxxxxxxxxxxxx\n');
	writeFileSync(join(root, 'etc/onramp/bundle/istio-token'), 'aaa.bbb-c_d.eee\n');
	t.is(runScript(root, 'cat istio-token').stdout, 'aaa.bbb-c_d.eee\n');
	t.is(readFileSync(join(root, 'etc/onramp/bundle/istio-token'), 'utf8'), 'aaa.bbb-c_d.eee\n', 'no copy of cloud-init');
});

test('cloud-config › refuses a bundle that no machine could join with, and prints nothing', async t => {
	const {code, stdout, stderr} = await onramp(['cloud-config', '/nowhere']);
	t.deepEqual([code, stdout], [78, '']);
	t.regex(stderr, /\/nowhere is not a directory/);
	const broken = await onramp(['cloud-config', bundle]);
	t.is(broken.stdout, '');
	t.is(broken.code, 78);
	const flag = await onramp(['cloud-config', '--bundle', bundle]);
	t.deepEqual(flag, broken, 'a flag is as good');
	for (const words of [[], [bundle, '--bundle', bundle]]) {
		const {code: unclear, stderr: said} = await onramp(['cloud-config', ...words]);
		t.is(unclear, 78);
		t.regex(said, /cloud-config: name one directory of a bundle\n +→ onramp cloud-config BUNDLE, or /);
	}
});
