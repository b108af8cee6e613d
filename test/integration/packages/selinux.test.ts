import {execFile} from 'node:child_process';
import {cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';

const run = promisify(execFile);
const root = join(import.meta.dirname, '../../..');
const packaging = join(root, 'packaging/selinux');
const ours = ['onramp.cil', 'onramp_permissive.cil'].map(name => join(packaging, name));
const rules = (name: string): string => join(import.meta.dirname, 'selinux', `${name}.cil`);

/** Debian's reference policy, as scripts/setup unpacks it. */
const policy = join(root, '.cache/selinux/default');
const toCil = '/usr/libexec/selinux/hll/pp';
/** Those of its 331 modules that ours, and the users of the base, need. */
const modules = ['base', 'unconfined', 'unprivuser', 'xserver', 'xdg', 'getty', 'iptables'];

const paths = (name: string): string[] => ['/usr/bin', '/usr/sbin', '/sbin'].map(folder => join(folder, name));

function hasPolicy(t: ExecutionContext): boolean {
	const missing = [
		...['secilc', 'bzcat'].filter(name => !paths(name).some(existsSync)),
		...[toCil, policy].filter(path => !existsSync(path)),
	];
	if (missing.length === 0) return true;
	t.log(`skipped: needs ${missing.join(', ')} (scripts/setup --tests, as root)`);
	t.pass();
	return false;
}

async function makeDirectory(t: ExecutionContext): Promise<string> {
	const directory = await mkdtemp(join(tmpdir(), 'onramp-selinux-'));
	t.teardown(() => rm(directory, {recursive: true, force: true}));
	return directory;
}

let unpacked: Promise<string[]> | undefined;

/** The system's policy in the language of ours, for all tests. */
const unpackPolicy = (): Promise<string[]> => {
	unpacked ??= unpackInto(mkdtempSync(join(tmpdir(), 'onramp-selinux-')));
	return unpacked;
};

test.after.always(async () => {
	if (unpacked) rmSync(dirname((await unpacked)[0]!), {recursive: true});
});

function unpackInto(directory: string): Promise<string[]> {
	const script = 'bzcat "$1" | "$2" >"$3"';
	return Promise.all(
		modules.map(async name => {
			const path = join(directory, `${name}.cil`);
			await run('sh', ['-c', script, 'sh', join(policy, `${name}.pp.bz2`), toCil, path]);
			return path;
		}),
	);
}

interface Compiled {
	readonly isWhole: boolean;
	readonly said: string;
	/** Lines of this file with a `neverallow` of what is allowed. */
	readonly violated: (file: string) => readonly number[];
	/** Type by path, for paths of files (`--`) and of anything. */
	readonly fileContexts: string;
}

/** A whole policy of these files, by the compiler that semodule uses, which holds all rules against all `neverallow`. */
async function compile(directory: string, files: readonly string[]): Promise<Compiled> {
	const contexts = join(directory, 'file_contexts');
	const args = ['-M', 'true', '-o', join(directory, 'policy'), '-f', contexts, ...files];
	const {code, said} = await run('secilc', args, {maxBuffer: 1 << 24}).then(
		({stdout, stderr}) => ({code: 0, said: stdout + stderr}),
		(error: {code: number; stdout: string; stderr: string}) => ({code: error.code, said: error.stdout + error.stderr}),
	);
	return {
		isWhole: code === 0,
		said,
		violated: file =>
			[...said.matchAll(/^neverallow check failed at (\S+):(\d+)$/gm)]
				.filter(([, path]) => path === file)
				.map(([, , line]) => Number(line))
				.toSorted((a, b) => a - b),
		fileContexts: code === 0 ? readFileSync(contexts, 'utf8') : '',
	};
}

const neverallows = (file: string): number[] =>
	readFileSync(file, 'utf8')
		.split('\n')
		.flatMap((line, i) => (line.startsWith('(neverallow') ? [i + 1] : []));

test.serial(
	'SELinux › the module fits the reference policy, and allows what the processes need and no more',
	async t => {
		if (!hasPolicy(t)) return;
		const directory = await makeDirectory(t);
		const base = await unpackPolicy();

		const whole = await compile(directory, [...base, ...ours, rules('never')]);
		t.true(whole.isWhole, whole.said);

		// What they forbid is noticed when it is allowed, each by its own rule.
		const broken = await compile(directory, [...base, ...ours, rules('never'), rules('breaks')]);
		t.deepEqual(broken.violated(rules('never')), neverallows(rules('never')));

		const needed = await compile(directory, [...base, ...ours, rules('always')]);
		t.deepEqual(needed.violated(rules('always')), neverallows(rules('always')));

		for (const [path, type] of [
			['/usr/lib/onramp/onramp\\.cjs\t--', 'onramp_exec_t'],
			['/usr/lib/onramp/node\t--', 'bin_t'],
			['/usr/lib/onramp/envoy\t--', 'onramp_envoy_exec_t'],
			['/etc/onramp(/.*)?', 'onramp_conf_t'],
			['/var/lib/onramp(/.*)?', 'onramp_state_t'],
			['/var/lib/onramp/envoy(/.*)?', 'onramp_envoy_state_t'],
			['/run/onramp(/.*)?', 'onramp_runtime_t'],
			['/run/onramp-capture(/.*)?', 'onramp_capture_runtime_t'],
		])
			t.true(whole.fileContexts.split('\n').includes(`${path}\tsystem_u:object_r:${type}:s0`), path);
	},
);

test.serial(
	'SELinux › systemd starting the programs changes the domain, which a second rule cannot say otherwise',
	async t => {
		if (!hasPolicy(t)) return;
		const directory = await makeDirectory(t);
		const base = await unpackPolicy();
		for (const [program, domain] of [
			['onramp_exec_t', 'onramp_t'],
			['onramp_envoy_exec_t', 'onramp_envoy_t'],
		]) {
			const other = join(directory, 'other.cil');
			writeFileSync(other, `(typetransition init_t ${program} process init_t)\n`);
			const {isWhole, said} = await compile(directory, [...base, ...ours, other]);
			t.false(isWhole);
			t.regex(said, new RegExp(`Conflicting type rules .*tcontext=${program} .*existing=${domain}\\b`));
		}
	},
);

test('SELinux › units name domains that the module has, and every domain is permissive in the other module', t => {
	const [module, permissive] = ours.map(path => readFileSync(path, 'utf8')) as [string, string];
	const named = readdirSync(join(root, 'packaging/units')).flatMap(unit => {
		const content = readFileSync(join(root, 'packaging/units', unit), 'utf8');
		return [...content.matchAll(/^SELinuxContext=-system_u:system_r:(\w+):s0$/gm)].map(([, type]) => `${unit} ${type}`);
	});
	t.deepEqual(named.toSorted(), [
		'onramp-capture-drift.service onramp_capture_t',
		'onramp-capture-watch.service onramp_capture_t',
		'onramp-capture.service onramp_capture_t',
		'onramp-envoy@.service onramp_envoy_t',
	]);
	const domains = [...module.matchAll(/^\(roletype system_r (\w+)\)$/gm)].map(([, type]) => type!);
	t.deepEqual(domains, ['onramp_t', 'onramp_envoy_t', 'onramp_capture_t']);
	t.deepEqual(
		[...permissive.matchAll(/^\(typepermissive (\w+)\)$/gm)].map(([, type]) => type!),
		domains,
	);
	t.notRegex(module, /typepermissive/);
});

/** Runs functions of the maintainer scripts with programs of our own, and returns what these were called with. */
async function perform(
	t: ExecutionContext,
	words: string,
	programs: Readonly<Record<string, string>>,
): Promise<string[]> {
	const directory = await makeDirectory(t);
	const calls = join(directory, 'calls');
	writeFileSync(calls, '');
	for (const [name, body] of Object.entries(programs))
		writeFileSync(join(directory, name), `#!/bin/sh\necho "${name} $*" >>${calls}\n${body}\n`, {mode: 0o755});
	const script = `set -e\n. ${join(root, 'packaging/scripts/setup.sh')}\nPATH=${directory}\n${words}`;
	await run('sh', ['-c', script]);
	return readFileSync(calls, 'utf8').replaceAll(' \n', '\n').trim().split('\n');
}

const folders = '/usr/lib/onramp /etc/onramp /var/lib/onramp /run/onramp /run/onramp-capture';

test('SELinux › the packages load and remove the module where it is enabled, and never fail by it', async t => {
	const loading = [
		'selinuxenabled',
		'semodule -X 200 -i /usr/share/selinux/packages/onramp.cil -i /usr/share/selinux/packages/onramp_permissive.cil',
		`restorecon -Ri ${folders}`,
	];
	const removing = [
		'selinuxenabled',
		'semodule -X 200 -r onramp_permissive -r onramp',
		'restorecon -Ri /etc/onramp /var/lib/onramp',
	];
	for (const body of ['', 'exit 1']) {
		const programs = {selinuxenabled: '', semodule: body, restorecon: body};
		t.deepEqual(await perform(t, 'load_selinux_modules', programs), loading);
		t.deepEqual(await perform(t, 'remove_selinux_modules', programs), removing);
	}
	const off = {selinuxenabled: 'exit 1', semodule: '', restorecon: ''};
	t.deepEqual(await perform(t, 'load_selinux_modules; remove_selinux_modules', off), [
		'selinuxenabled',
		'selinuxenabled',
	]);
	const setup = readFileSync(join(root, 'packaging/scripts/setup.sh'), 'utf8');
	for (const [name, part] of [
		['load_settings_of_the_kernel', 'load_selinux_modules'],
		['after_remove', 'remove_selinux_modules'],
	])
		t.regex(setup, new RegExp(`^${name}\\(\\) \\{\\n(\\t.*\\n)*\\t${part}\\n`, 'm'));
});

test.serial(
	'SELinux › in a store of modules an upgrade keeps what the admin has disabled, and a removal leaves nothing',
	async t => {
		if (process.env['ONRAMP_LONG_TESTS'] !== '1') {
			t.log('skipped: needs ONRAMP_LONG_TESTS=1');
			t.pass();
			return;
		}
		if (!hasPolicy(t)) return;
		if (!paths('semodule').some(existsSync)) {
			t.log('skipped: needs semodule');
			t.pass();
			return;
		}
		const store = await makeDirectory(t);
		mkdirSync(join(store, 'var/lib/selinux'), {recursive: true});
		mkdirSync(join(store, 'etc/selinux/default/contexts/files'), {recursive: true});
		const semodule = async (...words: string[]): Promise<string> =>
			(await run('semodule', ['-p', store, '-s', 'default', '-n', ...words])).stdout;
		await semodule('-X', '100', ...modules.flatMap(name => ['-i', join(policy, `${name}.pp.bz2`)]));
		const before = await semodule('-lfull');
		cpSync(packaging, join(store, 'packages'), {recursive: true});

		const inStore = {
			selinuxenabled: '',
			restorecon: '',
			semodule: `for word; do shift; set -- "$@" "$(echo "$word" | /bin/sed 's#^/usr/share/selinux#${store}#')"; done
PATH=/usr/sbin:/usr/bin:/sbin:/bin exec semodule -p ${store} -s default -n "$@"`,
		};
		await perform(t, 'load_selinux_modules', inStore);
		t.regex(await semodule('-lfull'), /^200 onramp +cil *\n200 onramp_permissive +cil *$/m);
		await semodule('-d', 'onramp_permissive');
		await perform(t, 'load_selinux_modules', inStore);
		t.regex(await semodule('-lfull'), /^200 onramp +cil *\n200 onramp_permissive +cil +disabled *$/m);
		await perform(t, 'remove_selinux_modules', inStore);
		t.deepEqual((await semodule('-lfull')).split(/\s+/), before.split(/\s+/));
		const left = readdirSync(join(store, 'var/lib/selinux'), {recursive: true, encoding: 'utf8'});
		t.deepEqual(
			left.filter(path => path.includes('onramp')),
			[],
		);
	},
);
