import {chmod, chown, mkdir, rm, stat} from 'node:fs/promises';
import {join} from 'node:path';
import anyTest, {type TestFn} from 'ava';
import type {StatusReport} from '../../../src/status/report.ts';
import {canMount, mountedAgent, seenBy} from './private-mount.ts';
import {
	complaints,
	joinedState,
	listFiles,
	listKept,
	makeWorld,
	processesOf,
	runToEnd,
	spoken,
	until,
	type World,
} from './world.ts';

const test = anyTest as TestFn<{world: World}>;
const mountTest = canMount ? test : test.skip;
const isRoot = process.geteuid!() === 0;

test.beforeEach(async t => {
	t.context.world = await makeWorld();
});
test.afterEach(t => t.context.world.checkSecrets(t));
test.afterEach.always(t => t.context.world.end());

/** A workload whose state directory is prepared by the script, which has it as `$STATE`. */
async function mountedWorkload(world: World, script: string) {
	const directory = join(world.directory, 'mounted');
	const stateDir = join(directory, 'state');
	await mkdir(stateDir, {recursive: true});
	const agentPath = await mountedAgent(world.directory, world.agentPath, `STATE=${stateDir}\n${script}`);
	return {
		mounted: await world.workload({bundle: await world.bundle(), directory, agentPath}),
		plain: () => world.workload({bundle: join(world.directory, 'bundle'), directory}),
	};
}

interface IdentityPart {
	readonly origin: string;
	readonly generation: number;
	readonly serial: string;
	readonly warnings: readonly string[];
}

const identityOf = ({parts}: StatusReport): IdentityPart => parts['identity'] as IdentityPart;

/** Takes all room there is; the copy ends with the error that is wanted. */
const fill = 'head -c 1M /dev/zero > "$STATE/filler" 2>/dev/null || true';

const fresh = [
	{
		title: 'full',
		script: `mount -t tmpfs -o size=64k tmpfs "$STATE"; ${fill}`,
		says: /: ENOSPC: no space left on device, write$/,
		remedy: /free space on its file system/,
	},
	{
		title: 'on a read-only disk',
		script: 'mount -t tmpfs -o ro tmpfs "$STATE"',
		says: /: EROFS: read-only file system, mkdir '\S+'$/,
		remedy: /mount its file system read-write, or set another state directory/,
	},
] as const;

for (const {title, script, says, remedy} of fresh) {
	mountTest(
		`faults › state › a first start with the directory ${title} ends with 1, and a later one joins`,
		async t => {
			const {world} = t.context;
			const {mounted, plain} = await mountedWorkload(world, script);
			mounted.start();
			t.is(await mounted.exit, 1);
			const lines = spoken(mounted.log());
			t.is(lines.length, 2, mounted.log());
			const start = `onramp: use state directory ${mounted.stateDir}/identity`;
			t.is(lines[0]!.slice(0, start.length), start);
			t.regex(lines[0]!.slice(start.length), says);
			t.regex(lines[1]!, remedy);
			t.deepEqual(complaints(mounted), []);
			t.deepEqual(processesOf(mounted.runDir), []);
			t.is(world.sandbox.counts.issuedByToken, 0, 'nothing is asked for that could not be kept');

			const mended = await plain();
			mended.start();
			await mended.untilReady();
			t.deepEqual(await listKept(mended.stateDir), joinedState);
		},
	);
}

mountTest('faults › state › a full directory is left without anything half-written', async t => {
	const {world} = t.context;
	const stateDir = join(world.directory, 'state');
	await mkdir(stateDir);
	// A look into the directory before the mount is gone with the last process that sees it.
	const script = `STATE=${stateDir}; mount -t tmpfs -o size=64k tmpfs "$STATE"; ${fill}
code=0; "$@" >/dev/null 2>&1 || code=$?; echo $code; find "$STATE" -mindepth 1 ! -type d`;
	const agent = [process.execPath, world.agentPath, 'run', '--bundle', await world.bundle(), ...(await world.places())];
	const sh = ['/bin/sh', '-ec', script, 'sh', ...agent, '--status-port', '0', '--notify', 'false'];
	const {stdout} = await runToEnd('unshare', ['--mount', ...sh]);
	t.deepEqual(stdout.trim().split('\n'), ['1', join(stateDir, 'filler')]);
});

mountTest(
	'faults › state › a directory that is full at a restart: the stored certificate is served at once, with a warning',
	async t => {
		const {world} = t.context;
		const {mounted, plain} = await mountedWorkload(
			world,
			`mkdir "$STATE.full"; mount -t tmpfs -o size=256k tmpfs "$STATE.full"
cp -a "$STATE/." "$STATE.full"; mount --bind "$STATE.full" "$STATE"; ${fill}`,
		);
		const first = await plain();
		first.start();
		const {serial} = identityOf(await first.untilReady());
		t.is(await first.stop(), 0);

		mounted.start();
		const report = await mounted.untilReady();
		t.is(identityOf(report).serial, serial);
		t.is(identityOf(report).origin, 'disk');
		t.regex(
			identityOf(report).warnings.join('\n'),
			/^new certificates cannot be kept: use state directory \S+: ENOSPC/,
		);
		// The name table and the configuration are kept in their own time, and say so then.
		t.is(complaints(mounted, 'identity').length, 1, complaints(mounted).join('\n'));
		t.deepEqual(await listFiles(seenBy(mounted, mounted.stateDir)), ['filler', ...joinedState].sort());
	},
);

mountTest(
	'faults › state › a disk that fills up while the agent runs costs a warning, and what is missing is written when there is room',
	async t => {
		const {world} = t.context;
		const {mounted} = await mountedWorkload(world, 'mount -t tmpfs -o size=256k tmpfs "$STATE"');
		mounted.start();
		const before = identityOf(await mounted.untilReady());
		const seen = seenBy(mounted, mounted.stateDir);
		await listKept(seen);
		await runToEnd('/bin/sh', ['-c', `STATE=${seen}; ${fill}`]);

		await mounted.command('rotate');
		const warned = (report: StatusReport) =>
			identityOf(report).warnings.some(text => /certificate not written: .*ENOSPC/.test(text));
		const report = await mounted.until('warned', warned);
		t.true(report.ready);
		t.not(identityOf(report).serial, before.serial, 'the new one is served from memory');
		t.deepEqual(
			await listFiles(seen),
			['filler', ...joinedState].sort(),
			'on disk is the old one, whole, and nothing else',
		);
		// The name table and the configuration are kept in their own time, and say so then.
		t.is(complaints(mounted, 'identity').length, 1, complaints(mounted).join('\n'));

		await rm(join(seen, 'filler'));
		await mounted.until('written', after => !warned(after));
		t.true((await listFiles(seen)).includes('identity/generations/000002/key.pem'));
	},
);

mountTest(
	'faults › state › a disk that is read-only at a restart: the certificate is served, Envoy logs elsewhere, both are told',
	async t => {
		const {world} = t.context;
		const {mounted, plain} = await mountedWorkload(
			world,
			'mount --bind "$STATE" "$STATE"; mount -o remount,ro,bind "$STATE"',
		);
		const first = await plain();
		first.start();
		const {serial} = identityOf(await first.untilReady());
		t.is(await first.stop(), 0);

		mounted.start();
		const report = await mounted.untilReady();
		t.is(identityOf(report).serial, serial);
		t.regex(identityOf(report).warnings.join('\n'), /^new certificates cannot be kept: use state directory \S+: EROFS/);
		const elsewhere = join(mounted.runDir, 'envoy', 'envoy.log');
		const {warnings} = report.parts['proxy'] as {warnings: string[]};
		t.is(warnings.length, 1);
		t.true(warnings[0]!.startsWith(`envoy's log is at ${elsewhere} until envoy starts anew: EROFS: `), warnings[0]);
		t.true((await stat(elsewhere)).isFile());
		t.is(complaints(mounted, 'identity', 'proxy').length, 2, complaints(mounted).join('\n'));
		t.deepEqual(await listFiles(mounted.stateDir), joinedState);
	},
);

test('faults › state › a directory of another user ends the agent with 1, naming both, and nothing is put in it', async t => {
	const {world} = t.context;
	const workload = await world.workload({bundle: await world.bundle()});
	const uid = process.geteuid!();
	// Without root there is still one directory that is somebody else's.
	const directory = isRoot ? join(workload.stateDir, 'identity') : '/usr/lib';
	const owner = isRoot ? 12_345 : 0;
	if (isRoot) {
		await mkdir(directory, {recursive: true, mode: 0o700});
		await chown(directory, owner, owner);
	}
	workload.start(['--identity-state-dir', directory]);
	t.is(await workload.exit, 1);
	t.deepEqual(spoken(workload.log()), [
		`onramp: use state directory ${directory}: it is owned by uid ${owner}, the agent runs as uid ${uid}`,
		`  → give it to the user the agent runs as (\`chown -R ${uid} ${directory}\`), or run the agent as the owner`,
	]);
	t.deepEqual(complaints(workload), []);
	t.deepEqual(await listFiles(workload.stateDir), []);
});

test('faults › state › a directory that others can write in ends the agent with 1, and the command it names mends it', async t => {
	const {world} = t.context;
	const workload = await world.workload({bundle: await world.bundle()});
	const directory = join(workload.stateDir, 'identity');
	await mkdir(directory, {recursive: true});
	await chmod(directory, 0o777);
	workload.start();
	t.is(await workload.exit, 1);
	t.deepEqual(spoken(workload.log()), [
		`onramp: use state directory ${directory}: other users can write in it (mode 0777)`,
		`  → chmod 0700 ${directory}`,
	]);
	await chmod(directory, 0o700);
	workload.start();
	await until('joined', async () => (await workload.untilReady()).ready);
});
