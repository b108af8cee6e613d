import {execFileSync, spawn} from 'node:child_process';
import {existsSync, readdirSync, readFileSync, statSync} from 'node:fs';
import {appendFile, chmod, mkdir, readFile, rm, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import anyTest, {type TestFn} from 'ava';
import {freePorts, type LocalWorkload} from '../../../src/sandbox/local-workload.ts';
import {fetchStatus} from '../../../src/status/index.ts';
import {canMount} from '../faults/private-mount.ts';
import {makeWorld, spoken, until, untilClosed, type World} from '../faults/world.ts';

const test = anyTest as TestFn<{world: World}>;

test.beforeEach(async t => {
	t.context.world = await makeWorld();
});
test.afterEach(t => t.context.world.checkSecrets(t));
test.afterEach.always(t => t.context.world.end());

/** Names, modes and contents below a directory. */
const snapshot = (directory: string) =>
	readdirSync(directory)
		.sort()
		.map(name => {
			const path = join(directory, name);
			const {mode, ino, gid} = statSync(path);
			return {name, mode: (mode & 0o777).toString(8), ino, gid, content: readFileSync(path, 'latin1')};
		});

/** As the same person would call it again, with the agent's own places. */
const again = (world: World, workload: LocalWorkload, ...args: readonly string[]) => {
	const places = ['--config', join(workload.options.directory, 'onramp.yaml'), '--run-dir', workload.runDir];
	return world.cli(['join', ...args, ...places, '--state-dir', workload.stateDir, '--envoy', world.envoyPath]);
};
const target = (workload: LocalWorkload): string => join(workload.options.directory, 'bundle');

test('join › in the foreground says what it does, keeps the bundle from other users, and tells when it is ready', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	await chmod(join(bundle, 'istio-token'), 0o744);
	const workload = await world.workload({bundle, command: 'join'});
	workload.start();
	await workload.untilReady();
	await until('it says so', () => workload.log().includes('ready: spiffe://'));
	const said = spoken(workload.log());
	t.is(said[0], `bundle ${bundle}: good`);
	t.regex(said[1]!, /^cluster\.env, mesh\.yaml, root-cert\.pem, hosts, istio-token: written to /);
	t.true(said.includes('ready: spiffe://cluster.local/ns/faults/sa/vm-sa'));
	t.regex(said.join('\n'), /warning: all users of this machine may read .*istio-token/);
	const {gid} = statSync(workload.options.directory);
	for (const {name, mode, gid: seen} of snapshot(target(workload))) t.deepEqual([name, mode, seen], [name, '640', gid]);
	t.is(statSync(target(workload)).mode & 0o777, 0o750);
});

test('join › a second time changes nothing, says so, and leaves the agent alone', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	const workload = await world.workload({bundle, command: 'join'});
	workload.start();
	const {pid} = await workload.untilReady();
	const before = snapshot(target(workload));
	const {code, stdout, stderr} = await again(world, workload, bundle, '--install-to', target(workload));
	t.is(code, 0, stderr);
	t.regex(stdout, /^nothing has changed: .* has this bundle already$/m);
	t.regex(stdout, /^the agent \(pid \d+\) is running; nothing to do$/m);
	t.regex(stdout, /^ready: spiffe:\/\/cluster\.local\/ns\/faults\/sa\/vm-sa$/m);
	t.deepEqual(snapshot(target(workload)), before);
	t.is((await workload.status()).pid, pid);
	t.is(world.sandbox.counts.issuedByToken, 1);
});

test('join › open modes of an installed token are mended', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	const workload = await world.workload({bundle, command: 'join'});
	workload.start();
	await workload.untilReady();
	await chmod(join(target(workload), 'istio-token'), 0o644);
	const {code, stdout} = await again(world, workload, bundle, '--install-to', target(workload));
	t.is(code, 0);
	t.regex(stdout, /^istio-token: made unreadable for others in /m);
	t.is(statSync(join(target(workload), 'istio-token')).mode & 0o777, 0o640);
});

test('join › with another bundle, an agent that runs by hand is in the way, and nothing is changed', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	const workload = await world.workload({bundle, command: 'join'});
	workload.start();
	await workload.untilReady();
	const before = snapshot(target(workload));
	const another = await world.bundle('another', {internalAddress: '127.0.0.9'});
	const {code, stdout, stderr} = await again(world, workload, another, '--install-to', target(workload));
	t.is(code, 78);
	t.is(stdout, '');
	t.regex(
		stderr,
		/an agent runs by hand here \(pid \d+\), and only a start reads \S+cluster\.env; nothing was changed/,
	);
	t.regex(stderr, /→ end it \(kill \d+\) and join again, or .*--install-only/);
	t.deepEqual(snapshot(target(workload)), before);

	const kept = await again(world, workload, another, '--install-to', target(workload), '--install-only');
	t.is(kept.code, 0, kept.stderr);
	t.regex(kept.stdout, /installed; nothing was started/);
	const {stdout: status} = await world.cli(['status', '--run-dir', workload.runDir]);
	t.regex(status, /changed since the agent was started, and not in use: \S+cluster\.env$/m);
});

test('join › an Envoy that is too old, or none, is refused before anything is changed', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	const workload = await world.workload({bundle, command: 'join'});
	const envoys = {
		old: '#!/bin/sh\necho "envoy  version: abc/1.20.1/Clean/RELEASE/BoringSSL"\n',
		other: '#!/bin/sh\necho "something else 1.40.0"\n',
	};
	const says = {old: /version 1\.20\.1[\s\S]*install Envoy 1\.36 or later/, other: /says nothing of Envoy/};
	for (const name of ['old', 'other'] as const) {
		const path = join(world.directory, `envoy-${name}`);
		await writeFile(path, envoys[name], {mode: 0o755});
		const given = [bundle, '--install-to', target(workload), '--envoy', path];
		const places = ['--config', join(workload.options.directory, 'onramp.yaml'), '--run-dir', workload.runDir];
		const {code, stderr} = await world.cli(['join', ...given, ...places, '--state-dir', workload.stateDir]);
		t.is(code, 78);
		t.regex(stderr, says[name]);
		t.regex(stderr, /nothing was changed/);
		t.false(existsSync(target(workload)));
	}
});

test('join › a locked-out agent is brought a token without a restart, and the command waits until it is ready', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	const workload = await world.workload({bundle, command: 'join', flags: ['--token-path', join(bundle, 'gone')]});
	workload.start();
	const {pid} = await workload.until('answers', () => true);
	await untilClosed(workload, 'identity', /locked out/);
	const tokenFile = join(world.directory, 'new-token');
	await writeFile(tokenFile, world.token());
	const flags = ['--token-path', join(bundle, 'gone'), '--bundle', target(workload)];
	const {code, stdout, stderr} = await world.cli([
		...['join', '--token-file', tokenFile, '--config', join(workload.options.directory, 'onramp.yaml')],
		...flags.slice(0, 2),
	]);
	t.is(code, 0, stderr);
	t.regex(stdout, /^token: written to \S+gone, valid until /m);
	t.regex(stdout, /^ready: /m);
	t.is(statSync(join(bundle, 'gone')).mode & 0o777, 0o640);
	t.is((await workload.status()).pid, pid);

	const twice = await world.cli([
		...['join', '--token-file', tokenFile, '--config', join(workload.options.directory, 'onramp.yaml')],
	]);
	t.is(twice.code, 0, twice.stderr);
	t.regex(twice.stdout, /^nothing has changed: \S+gone has this token already$/m);
	t.regex(twice.stdout, /^the agent needs no token now: its certificate is valid until /m);
});

const badTokens: readonly [string, (world: World) => string, RegExp][] = [
	['expired', world => world.token({expired: true}), /the token expired at \S+, and here it is /],
	[
		'of another workload',
		world => world.token({serviceAccount: 'other'}),
		/the token is that of "system:serviceaccount:faults:other", and this workload is "system:serviceaccount:faults:vm-sa"/,
	],
	['cut short', world => world.token().slice(0, -9), /the token is cut short or damaged/],
	['empty', () => '', /the token is empty/],
];

for (const [title, make, says] of badTokens) {
	test(`join › a token that is ${title} is refused before anything is touched`, async t => {
		const {world} = t.context;
		const bundle = await world.bundle();
		await writeFile(join(bundle, 'istio-token'), make(world));
		const installed = join(world.directory, 'installed');
		const {code, stdout, stderr} = await world.cli([
			...['join', bundle, '--install-to', installed, ...(await world.places())],
		]);
		t.is(code, 78, stderr);
		t.is(stdout, '');
		t.regex(stderr, says);
		t.throws(() => statSync(installed), {code: 'ENOENT'});
	});
}

test('join › tells all that is wrong with a bundle at once', async t => {
	const {world} = t.context;
	const bundle = await world.bundle();
	await rm(join(bundle, 'mesh.yaml'));
	await appendFile(join(bundle, 'cluster.env'), "ISTIO_META_X='cut");
	await writeFile(join(bundle, 'root-cert.pem'), '-----BEGIN CERTIFICATE-----\nMII');
	const {code, stderr} = await world.cli(['join', bundle, ...(await world.places())]);
	t.is(code, 78);
	t.regex(stderr, /mesh\.yaml: this file of the bundle is missing/);
	t.regex(stderr, /cluster\.env:\d+: the value of ISTIO_META_X has a quote that is never closed/);
	t.regex(stderr, /root-cert\.pem: a root certificate is cut short/);
	t.regex(stderr, /→ nothing was changed/);
});

/** Stands where systemctl would: notes what it is asked, and starts the agent as a unit would. */
async function makeSystemctl(world: World): Promise<{directory: string; log: string; pid: string}> {
	const directory = join(world.directory, 'bin');
	const [log, pid] = [join(world.directory, 'systemctl.log'), join(world.directory, 'service.pid')];
	await mkdir(directory);
	await writeFile(
		join(directory, 'systemctl'),
		`#!/bin/sh
echo "$*" >>${log}
case "$1" in
show) if [ "$3" = onramp.service ]; then echo LoadState=loaded; else echo LoadState=not-found; fi ;;
is-enabled) grep -q '^enable ' ${log} && echo enabled || { echo disabled; exit 1; } ;;
is-failed) echo inactive; exit 1 ;;
restart) env -i PATH=/usr/bin:/bin ${process.execPath} ${world.agentPath} run </dev/null >>${world.directory}/service.log 2>&1 & echo $! >${pid} ;;
esac
`,
		{mode: 0o755},
	);
	return {directory, log, pid};
}

(canMount ? test : test.skip)(
	'join › hands over to a service: enables it, starts it once, and the service has the flags join was given',
	async t => {
		const {world} = t.context;
		const bundle = await world.bundle();
		const systemctl = await makeSystemctl(world);
		const etc = join(world.directory, 'etc');
		execFileSync('cp', ['-a', '/etc', etc]);
		await rm(join(etc, 'onramp'), {recursive: true, force: true});
		const [status, readiness, metrics] = await freePorts(3);
		const run = join(world.directory, 'run');
		const flags = [
			...['--state-dir', join(world.directory, 'state'), '--run-dir', run, '--envoy', world.envoyPath],
			...['--name', 'named-by-join', '--address', '127.0.0.1', '--status-port', String(status)],
			...['--proxy-readiness-port', String(readiness), '--proxy-metrics-port', String(metrics)],
			...['--proxy-listen-address', '127.0.0.1', '--proxy-termination-drain', '0s', '--proxy-drain-ceiling', '1s'],
		];
		const joinIn = (args: readonly string[], env: Record<string, string> = {}) =>
			new Promise<{code: number | null; output: string}>(resolve => {
				const child = spawn(
					'unshare',
					[
						'--mount',
						'/bin/sh',
						'-ec',
						'mount --bind "$0" /etc; exec "$@"',
						etc,
						process.execPath,
						world.agentPath,
						...args,
					],
					{env: {PATH: `${systemctl.directory}:${process.env['PATH']}`, ...env}},
				);
				let output = '';
				child.stdout.on('data', chunk => (output += chunk));
				child.stderr.on('data', chunk => (output += chunk));
				child.on('close', code => resolve({code, output}));
			});
		const asked = async () =>
			(await readFile(systemctl.log, 'utf8')).split('\n').filter(line => !/^(show|is-)/.test(line));

		const refused = await joinIn(['join', bundle, ...flags], {ONRAMP_LOG_LEVEL: 'debug'});
		t.is(refused.code, 78);
		t.regex(refused.output, /ONRAMP_LOG_LEVEL: the service would not see it; for log\.level it has the default/);
		t.deepEqual(await asked(), [''], 'nothing was started');
		t.throws(() => statSync(join(etc, 'onramp')), {code: 'ENOENT'});

		t.teardown(async () => {
			const pid = Number(await readFile(systemctl.pid, 'utf8').catch(() => '0'));
			if (pid === 0) return;
			process.kill(pid, 'SIGTERM');
			await until('the service and its Envoy have ended', () => !existsSync(`/proc/${pid}`));
		});
		const joined = await joinIn(['join', bundle, ...flags]);
		t.is(joined.code, 0, joined.output);
		t.regex(joined.output, /^onramp\.service: enabled, it starts at boot from now on$/m);
		t.regex(joined.output, /^ready: spiffe:\/\/cluster\.local\/ns\/faults\/sa\/vm-sa$/m);
		t.deepEqual(await asked(), ['enable onramp.service', 'restart --no-block onramp.service', '']);
		const report = await fetchStatus(join(run, 'control.sock'));
		t.is(report.pid, Number(await readFile(systemctl.pid, 'utf8')));
		t.regex(readFileSync(join(etc, 'onramp', 'join.yaml'), 'utf8'), /name: named-by-join/);

		// Known by what the first one kept: no flag is needed.
		const twice = await joinIn(['join', bundle]);
		t.is(twice.code, 0, twice.output);
		t.regex(twice.output, /^nothing has changed/m);
		t.deepEqual((await asked()).length, 3, 'not started again');
	},
);
