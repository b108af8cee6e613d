import {execFile} from 'node:child_process';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {promisify} from 'node:util';
import test from 'ava';
import {backends, makeWorld, primeTables, skippedWithout, toolsOf, type World} from '../../support/netns.ts';
import {canMount} from '../faults/private-mount.ts';

const run = promisify(execFile);
const spoolPath = fileURLToPath(new URL('../../../src/capture/spool.ts', import.meta.url));

(canMount ? test.serial : test.serial.skip)(
	'full disk › a file for rules that would be cut short is made elsewhere, and nothing of it is left',
	async t => {
		const directory = await mkdtemp(join(tmpdir(), 'onramp-full-'));
		t.teardown(() => rm(directory, {recursive: true, force: true}));
		const [full, empty] = [join(directory, 'full'), join(directory, 'empty')];
		// One page is left: the file can be made, and its beginning written.
		const script = `mkdir ${full} ${empty}; mount -t tmpfs -o size=16k tmpfs ${full}; head -c 12288 /dev/zero >${full}/filler; exec "$@"`;
		const program = `
const {spool} = await import(${JSON.stringify(spoolPath)});
const {readFileSync, readdirSync} = await import('node:fs');
const [full, empty] = ${JSON.stringify([full, empty])};
const text = 'rule\\n'.repeat(2000);
const isWhole = readFileSync(spool(text, [full, empty]), 'utf8') === text;
let refusal;
try { spool(text, [full]); } catch (error) { refusal = error.message; }
console.log(JSON.stringify({isWhole, refusal, left: [readdirSync(full), readdirSync(empty)]}));`;
		const {stdout} = await run('unshare', [
			...['--mount', '/bin/sh', '-ec', script, 'sh'],
			...[process.execPath, '--input-type=module', '-e', program],
		]);
		const {isWhole, refusal, left} = JSON.parse(stdout) as {isWhole: boolean; refusal: string; left: string[][]};
		t.true(isWhole);
		t.regex(refusal, /ENOSPC/);
		t.deepEqual(left, [['filler'], []]);
	},
);

const fill = 'dd if=/dev/zero of="$S/filler" bs=4k 2>/dev/null || true';

/** A disk of its own for state and temporary files, for the script that gets the command line of `capture` as `"$@"`. */
async function onSmallDisk({vm, directory, captureCommand}: World, script: string) {
	const state = join(directory, 'state');
	const set = `S=${state}; mkdir -p "$S"; mount -t tmpfs -o size=512k,mode=700 tmpfs "$S"; mkdir "$S/tmp"
mount --bind "$S/tmp" /var/tmp; export TMPDIR="$S/tmp"`;
	const [node, agent, , , ...flags] = captureCommand(['status']);
	// As on a machine that runs no unit of ours.
	const capture = `capture() { verb=$1; shift; ${node} ${agent} capture "$verb" ${flags.join(' ')} "$@"; }`;
	return vm.run('sh', ['-ec', `${set}\n${capture}\n${script}`]);
}

for (const backend of backends)
	test.serial(`full disk › rules go and come back though nothing can be written any more: ${backend}`, async t => {
		if (skippedWithout(t, toolsOf(backend))) return;
		const world = await makeWorld(t, {flags: ['--capture-backend', backend]});
		await primeTables(world);
		const before = await world.dump();
		await world.startEnvoy();
		const removed = await onSmallDisk(world, `capture apply; ${fill}; capture remove`);
		t.is(removed.code, 0, removed.stderr);
		t.is(await world.dump(), before);
		const replaced = await onSmallDisk(
			world,
			`capture apply; ${fill}; capture apply --capture-inbound-ports 80 2>&1 || echo refused; capture status; capture remove`,
		);
		t.is(replaced.code, 0, replaced.stdout + replaced.stderr);
		t.log(replaced.stdout);
		t.is(await world.dump(), before);
	});

test.serial('full disk › a trial that nobody confirms is undone though the disk has filled up meanwhile', async t => {
	if (skippedWithout(t)) return;
	const world = await makeWorld(t);
	const before = await world.dump();
	await world.startEnvoy();
	// Killed is the command, and not only the shell around it.
	const script = `capture apply --confirm 3s >"$S/said" 2>&1 & A=$!
for i in $(seq 200); do [ -z "$(find ${world.directory} -name loaded)" ] || break; sleep 0.05; done
${fill}; pkill -9 -P $A; wait $A || true
for i in $(seq 200); do nft list tables | grep -q onramp || break; sleep 0.1; done`;
	const {code, stderr} = await onSmallDisk(world, script);
	t.is(code, 0, stderr);
	t.is(await world.dump(), before);
});
