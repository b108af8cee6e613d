import {execFile} from 'node:child_process';
import {createHash} from 'node:crypto';
import {
	closeSync,
	copyFileSync,
	cpSync,
	existsSync,
	mkdirSync,
	openSync,
	readdirSync,
	readFileSync,
	readSync,
	statSync,
	symlinkSync,
	writeFileSync,
} from 'node:fs';
import {join} from 'node:path';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {buildAgent} from '../../support/agent.ts';
import {debIn, has, listDeb, makeDirectory, makePackages, root} from './build.ts';

const run = promisify(execFile);
const digests = (directory: string): Record<string, string> =>
	Object.fromEntries(
		readdirSync(directory, {withFileTypes: true})
			.filter(entry => entry.isFile())
			.map(({name}) => [
				name,
				createHash('sha256')
					.update(readFileSync(join(directory, name)))
					.digest('hex'),
			]),
	);

/** Exit code and all that was said, of a program that ends with another code than 0 when it finds something. */
async function ask(file: string, ...args: string[]): Promise<string> {
	const {stdout, stderr} = await run(file, args, {cwd: root, maxBuffer: 1 << 24}).catch(
		(error: {stdout: string; stderr: string}) => error,
	);
	return `${stdout}${stderr}`;
}

/** A checkout at another place, whose code is built anew there. */
async function checkOut(t: ExecutionContext): Promise<string> {
	const directory = join(await makeDirectory(t), 'elsewhere');
	mkdirSync(directory);
	for (const name of [
		'src',
		'scripts',
		'packaging',
		'docs',
		'package.json',
		'package-lock.json',
		'CHANGELOG.md',
		'LICENSE',
	])
		cpSync(join(root, name), join(directory, name), {recursive: true});
	await run('cp', ['-al', join(root, 'node_modules'), directory]).catch(() =>
		run('cp', ['-a', join(root, 'node_modules'), directory]),
	);
	symlinkSync(join(root, '.cache'), join(directory, '.cache'));
	return directory;
}

test.serial('packages › built twice of one commit they are the same, byte for byte, wherever and whenever', async t => {
	const results: Record<string, string>[] = [];
	for (const [TZ, umask, HOME] of [
		['Pacific/Chatham', '0022', '/root'],
		['UTC', '0077', '/nonexistent'],
	] as const) {
		const directory = await checkOut(t);
		const make = 'node scripts/package.ts --fast --package';
		const words = `umask ${umask} && node scripts/build.ts && ${make} onramp && ${make} onramp-envoy --format deb`;
		const PATH = `${join(directory, 'node_modules/.bin')}:${process.env['PATH']}`;
		await run('sh', ['-c', words], {cwd: directory, env: {...process.env, PATH, TZ, HOME}});
		const out = join(directory, 'dist/packages');
		const known = digests(out);
		const sums = readFileSync(join(out, 'SHA256SUMS'), 'utf8');
		for (const [name, digest] of Object.entries(known))
			if (name !== 'SHA256SUMS') t.true(sums.includes(`${digest}  ${name}\n`), name);
		results.push({...known, pack: digests(join(directory, 'dist'))['onramp.pack']!});
	}
	t.deepEqual(results[0], results[1]!);
	t.is(Object.keys(results[0]!).length, 6, 'debs, rpm, bill of materials, sums, and the code itself');
});

test.serial('packages › they are compressed to the same bytes whatever the number of processors', async t => {
	if (!has(t, 'dpkg-deb', 'taskset', 'xz')) return;
	const directory = await makeDirectory(t);
	mkdirSync(join(directory, 'tree/DEBIAN'), {recursive: true});
	const control = 'Package: sample\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: sample\n';
	writeFileSync(join(directory, 'tree/DEBIAN/control'), control);
	// More than one of the blocks, of 24 MiB, into which xz cuts its input.
	const part = Buffer.alloc(28 << 20);
	const node = openSync(process.execPath, 'r');
	for (const at of [0, 24 << 20]) readSync(node, part, at, 3 << 20, at);
	closeSync(node);
	writeFileSync(join(directory, 'tree/part'), part);
	await run('dpkg-deb', ['-Znone', '--build', join(directory, 'tree'), join(directory, 'one.deb')]);
	copyFileSync(join(directory, 'one.deb'), join(directory, 'all.deb'));
	const {stdout: content} = await run('dpkg-deb', ['-c', join(directory, 'one.deb')]);
	const script = `import('./scripts/packages/compress-deb.ts').then(it => it.compressDeb(process.argv[1]))`;
	const compress = (name: string) => [process.execPath, '-e', script, join(directory, name)];
	await run('taskset', ['-c', '0', ...compress('one.deb')], {cwd: root});
	const [file, ...args] = compress('all.deb');
	await run(file!, args, {cwd: root});
	const {'one.deb': one, 'all.deb': all} = digests(directory);
	t.is(one, all!);
	t.is((await run('dpkg-deb', ['-c', join(directory, 'all.deb')])).stdout, content);
	t.true(statSync(join(directory, 'all.deb')).size < part.length / 2);
});

test.serial('packages › V8 takes the code that was compiled for it, so a start compiles nothing', async t => {
	const launcher = await buildAgent();
	const script = `
		const {Script} = require('node:vm');
		const before = Script.prototype.runInThisContext;
		let count = 0;
		Script.prototype.runInThisContext = function (...args) {
			if (this.cachedDataRejected !== false) process.exit(3);
			if (++count === 1) process.on('exit', () => console.log('parts ' + count));
			return before.apply(this, args);
		};
		process.argv = [process.execPath, ${JSON.stringify(launcher)}, 'version'];
		require(${JSON.stringify(launcher)});
	`;
	const {stdout} = await run(process.execPath, ['-e', script]);
	t.regex(stdout, /parts [1-9]/);
});

/** ELF: the processor that a program is for, at offset 18. */
const machines = {x64: 62, arm64: 183} as const;
const names = {
	deb: {x64: 'amd64', arm64: 'arm64'},
	rpm: {x64: 'x86_64', arm64: 'aarch64'},
} as const;

test.serial('packages › those for arm64 hold what those for x64 do, with programs for arm64', async t => {
	if (!has(t, 'dpkg-deb', 'rpm')) return;
	const out = await makePackages(t, '--arch', 'x64,arm64');
	const found: Record<string, string[]> = {};
	for (const arch of ['x64', 'arm64'] as const) {
		for (const name of ['onramp', 'onramp-envoy']) {
			const deb = readdirSync(out).find(file => new RegExp(`^${name}_.*_${names.deb[arch]}\\.deb$`).test(file))!;
			const rpm = readdirSync(out).find(file => new RegExp(`^${name}-\\d.*\\.${names.rpm[arch]}\\.rpm$`).test(file))!;
			const field = async (key: string) => (await run('dpkg-deb', ['-f', join(out, deb), key])).stdout.trim();
			t.is(await field('Architecture'), names.deb[arch]);
			t.regex(await field('Depends'), /^libc6 \(>= 2\.\d+\)/);
			const {stdout: ofRpm} = await run('rpm', ['-qp', '--qf', '%{ARCH} %{OS}\n', '--requires', join(out, rpm)]);
			t.regex(ofRpm, new RegExp(`^${names.rpm[arch]} linux\n(?:.*\n)*glibc >= 2`));

			const unpacked = join(out, `${name}-${arch}`);
			await run('dpkg-deb', ['-x', join(out, deb), unpacked]);
			const files = await listDeb(t, join(out, deb));
			found[arch] = [...(found[arch] ?? []), ...files.map(path => path.replace(/linux[-_](x64|arm64)/g, 'linux'))];
			const programs = files.filter(path => isProgram(join(unpacked, path)));
			t.true(programs.length >= (name === 'onramp' ? 2 : 1), programs.join());
			for (const path of programs)
				t.is(readFileSync(join(unpacked, path)).readUInt16LE(18), machines[arch], `${arch}: ${path}`);
		}
		t.true(existsSync(join(out, `onramp-${arch}.cdx.json`)));
	}
	t.deepEqual(found['arm64'], found['x64']!);
	const {stdout} = await run(process.execPath, [join(out, 'onramp-arm64/usr/lib/onramp/onramp.cjs'), 'version']);
	t.regex(stdout, /^onramp 0\.1\.0/, 'its code runs, on the Node of this machine');
});

test.serial('packages › AppArmor takes the profiles', async t => {
	if (!has(t, 'apparmor_parser')) return;
	// Compiles, and loads nothing.
	const said = await ask('apparmor_parser', '--skip-kernel-load', '--skip-cache', '--names', 'packaging/apparmor');
	t.regex(said, /^onramp-agent$/m);
	t.regex(said, /^onramp-envoy$/m);
	const {stdout} = await run('apparmor_parser', ['--skip-kernel-load', '--skip-cache', 'packaging/apparmor'], {
		cwd: root,
	});
	t.is(stdout, '');
	for (const unit of ['agent', 'envoy@'])
		t.regex(
			readFileSync(join(root, `packaging/units/onramp-${unit}.service`), 'utf8'),
			new RegExp(`^AppArmorProfile=-onramp-${unit.replace('@', '')}$`, 'm'),
		);
});

test.serial('packages › lintian finds no error and no warning', async t => {
	if (!has(t, 'lintian', 'dpkg-deb')) return;
	const out = await makePackages(t, '--format', 'deb');
	const debs = readdirSync(out).filter(name => name.endsWith('.deb'));
	// These are hardly compressed, to be made quickly.
	const options = ['--suppress-tags', 'uses-no-compression-for-data-tarball'];
	const said = await ask('lintian', '--allow-root', ...options, ...debs.map(name => join(out, name)));
	t.deepEqual(said.match(/^[EW]: .*/gm) ?? [], []);
});

test.serial('packages › rpmlint finds no error', async t => {
	if (!has(t, 'rpmlint')) return;
	const out = await makePackages(t, '--format', 'rpm');
	const rpms = readdirSync(out).filter(name => name.endsWith('.rpm'));
	const said = await ask('rpmlint', '-c', 'packaging/rpmlint.toml', ...rpms.map(name => join(out, name)));
	t.deepEqual(said.match(/^.* E: .*/gm) ?? [], []);
	t.regex(said, /2 packages.* 0 errors/);
});

test.serial('packages › who publishes them is said when they are made', async t => {
	if (!has(t, 'dpkg-deb')) return;
	const who = 'Mesh Team <mesh@example.org>';
	const words = ['--package', 'onramp', '--format', 'deb', '--maintainer', who, '--homepage', 'https://example.org/'];
	const out = await makePackages(t, ...words);
	t.is(
		(await run('dpkg-deb', ['-f', debIn(out), 'Maintainer', 'Homepage'])).stdout,
		`Maintainer: ${who}\nHomepage: https://example.org/\n`,
	);
	await t.throwsAsync(makePackages(t, '--maintainer', 'nobody'), {message: /write it as NAME <ADDRESS>/});
});

function isProgram(path: string): boolean {
	return (
		statSync(path, {throwIfNoEntry: false})?.isFile() === true &&
		readFileSync(path).toString('latin1', 0, 4) === '\x7fELF'
	);
}
