import {mkdir, readFile, rmdir, writeFile} from 'node:fs/promises';
import test from 'ava';
import {address, backends, execute, makeWorld, type Peer, skippedWithout, toolsOf} from '../../support/netns.ts';

/** Where the tree of cgroup v2 is; not everywhere at the place that nft looks at. */
async function findCgroupRoot(): Promise<string | undefined> {
	const mounts = (await readFile('/proc/mounts', 'utf8')).split('\n').map(line => line.split(' '));
	return mounts.find(([, , type]) => type === 'cgroup2')?.[1];
}

for (const backend of backends)
	test.serial(`units › only connections of the control group are captured, or all but them: ${backend}`, async t => {
		if (skippedWithout(t, toolsOf(backend))) return;
		const root = await findCgroupRoot();
		if (root === undefined) {
			t.log('skipped: needs cgroup v2');
			t.pass();
			return;
		}
		const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
		const name = `onramp-test-${process.pid}-${backends.indexOf(backend)}`;
		const unit = `${name}/app.service`;
		await mkdir(`${root}/${unit}`, {recursive: true});
		t.teardown(async () => {
			await rmdir(`${root}/${unit}`);
			await rmdir(`${root}/${name}`);
		});
		await world.startEnvoy();
		const [inside, beside, outside] = [await world.vm.peer(), await world.vm.peer(), await world.far.peer(0)];
		for (const host of ['0.0.0.0', '::']) await outside.listen(host, 80);
		const pid = String(await pidOf(inside));
		await writeFile(`${root}/${unit}/cgroup.procs`, pid);
		t.teardown(() => writeFile(`${root}/cgroup.procs`, pid).catch(() => {})); // ended already
		// The namespace's own mounts: nft looks the path up below /sys/fs/cgroup.
		const capture = (...args: readonly string[]) =>
			execute('ip', [
				...['netns', 'exec', world.vm.name, 'sh', '-c', 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"', 'sh'],
				...world.captureCommand(args),
			]);
		for (const [flag, expected] of [
			['--capture-units', ['envoy', 'direct']],
			['--capture-exclude-units', ['direct', 'envoy']],
		] as const) {
			const {code, stderr} = await capture('apply', flag, unit);
			t.is(code, 0, stderr);
			for (const family of ['ip', 'ip6'] as const) {
				const seen = [await inside.ask(address.far[family], 80), await beside.ask(address.far[family], 80)];
				t.deepEqual(
					seen.map(({via, error}) => via ?? error),
					[...expected],
					`${flag}, ${family}`,
				);
			}
			t.is((await capture('verify', flag, unit)).code, 0);
		}
		const missing = await capture('apply', '--capture-units', 'no-such.service');
		t.is(missing.code, 1);
		t.regex(missing.stderr, /"no-such\.service" has no control group on this machine now/);
	});

const pidOf = async (peer: Peer): Promise<number> => (await peer.send<{pid: number}>('whoAmI')).pid;
