import {execFile} from 'node:child_process';
import {createHash} from 'node:crypto';
import {existsSync, readdirSync, readFileSync, statSync} from 'node:fs';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {buildAgent} from '../../support/agent.ts';

const run = promisify(execFile);
const root = join(import.meta.dirname, '../../..');

async function makePackages(t: ExecutionContext, ...words: string[]): Promise<string> {
	await buildAgent();
	const out = await mkdtemp(join(tmpdir(), 'onramp-packages-'));
	t.teardown(() => rm(out, {recursive: true, force: true}));
	const env = {...process.env, SOURCE_DATE_EPOCH: '1767225600', TZ: 'Pacific/Chatham'};
	await run(process.execPath, ['scripts/package.ts', '--fast', '--out', out, ...words], {cwd: root, env});
	return out;
}

const digests = (directory: string): Record<string, string> =>
	Object.fromEntries(
		readdirSync(directory).map(name => [
			name,
			createHash('sha256')
				.update(readFileSync(join(directory, name)))
				.digest('hex'),
		]),
	);

const isDebian = existsSync('/usr/bin/dpkg-deb');

test.serial('packages › made twice of the same files they are the same, byte for byte', async t => {
	const [first, second] = [await makePackages(t, '--package', 'onramp'), await makePackages(t, '--package', 'onramp')];
	t.deepEqual(Object.keys(digests(first)).toSorted(), [
		'SHA256SUMS',
		'onramp-0.1.0-1.x86_64.rpm',
		'onramp.cdx.json',
		'onramp_0.1.0-1_amd64.deb',
	]);
	t.deepEqual(digests(first), digests(second));
	const sums = readFileSync(join(first, 'SHA256SUMS'), 'utf8');
	for (const [name, digest] of Object.entries(digests(first)))
		if (name !== 'SHA256SUMS') t.true(sums.includes(`${digest}  ${name}\n`), name);
});

test.serial(
	'packages › the agent brings its Node, and nothing that others could write or that was left by the build',
	async t => {
		if (!isDebian) {
			t.log('skipped: needs dpkg-deb');
			t.pass();
			return;
		}
		const out = await makePackages(t, '--package', 'onramp', '--format', 'deb');
		const deb = join(out, 'onramp_0.1.0-1_amd64.deb');
		const {stdout: list} = await run('dpkg-deb', ['-c', deb]);
		const files = list
			.trim()
			.split('\n')
			.filter(line => !line.startsWith('d'));
		for (const line of files) t.regex(line, /^(-rw-r--r--|-rwxr-xr-x|l---------) root\/root/, line);
		const names = files.map(line => /\.(\/\S+)/.exec(line)![1]!);
		for (const wanted of [
			'/usr/bin/onramp',
			'/usr/lib/onramp/node',
			'/usr/lib/onramp/onramp.pack',
			'/etc/onramp/onramp.yaml',
			'/usr/share/man/man1/onramp.1.gz',
			'/usr/share/bash-completion/completions/onramp',
			'/usr/share/doc/onramp/copyright',
			...readdirSync(join(root, 'packaging/units')).map(unit => `/usr/lib/systemd/system/${unit}`),
		])
			t.true(names.includes(wanted), wanted);
		t.deepEqual(
			names.filter(name => /\.(ts|map|md)$|\/test\//.test(name)),
			[],
		);
		const {stdout: control} = await run('dpkg-deb', ['-I', deb]);
		t.regex(control, /Depends: libc6/);

		const unpacked = join(out, 'unpacked');
		await run('dpkg-deb', ['-x', deb, unpacked]);
		// Where the link and the first line of the program lead once it is installed.
		const {stdout} = await run(join(unpacked, 'usr/lib/onramp/node'), [
			join(unpacked, 'usr/lib/onramp/onramp.cjs'),
			'version',
		]);
		t.regex(stdout, /^onramp 0\.1\.0 \(node v24/);
		t.regex(readFileSync(join(unpacked, 'usr/lib/onramp/onramp.cjs'), 'latin1'), /^#!\/usr\/lib\/onramp\/node\n/);
		const koffi = "require('/x/koffi').load('libc.so.6').func('int getpid()')() === process.pid || process.exit(1)";
		await run(join(unpacked, 'usr/lib/onramp/node'), [
			'-e',
			koffi.replace('/x', join(unpacked, 'usr/lib/onramp/node_modules')),
		]);
		const {stdout: help} = await run('bash', [
			'-c',
			`. ${unpacked}/usr/share/bash-completion/completions/onramp; COMP_WORDS=(onramp j) COMP_CWORD=1; _onramp; echo "\${COMPREPLY[@]}"`,
		]);
		t.is(help.trim(), 'join');
		t.true(statSync(deb).size > 0);
	},
);
