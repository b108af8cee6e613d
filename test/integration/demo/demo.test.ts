import {type ChildProcess, execFileSync, spawn, spawnSync} from 'node:child_process';
import {once} from 'node:events';
import {existsSync, readdirSync} from 'node:fs';
import {chmod, mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {whyNoMachines} from '../../../scripts/machines.ts';
import {buildAgent} from '../../support/agent.ts';
import {findProcesses, until} from '../../support/mesh.ts';

interface Demo {
	readonly child: ChildProcess;
	/** Everything it writes is below this. */
	readonly directory: string;
	readonly output: () => string;
	readonly exit: Promise<unknown>;
}

const demos: Demo[] = [];

async function start(...command: readonly string[]): Promise<Demo> {
	const [program, ...flags] = command as [string, ...string[]];
	const directory = await mkdtemp(join(tmpdir(), 'onramp-demos-'));
	// Other users of the machine, as which its agents run, have to get through.
	await chmod(directory, 0o755);
	const child = spawn(program, flags, {
		stdio: ['ignore', 'pipe', 'pipe'],
		env: {...process.env, TMPDIR: directory},
	});
	let output = '';
	for (const stream of [child.stdout, child.stderr]) stream.on('data', text => (output += text));
	const exit = once(child, 'close').then(([code]) => code);
	const demo = {child, directory, output: () => output, exit};
	demos.push(demo);
	return demo;
}

const missing = whyNoMachines();
await buildAgent();
// Side by side: each waits more than it works.
const whole = start('scripts/demo', '--once');
const early = start(process.execPath, 'scripts/demo.ts');
const late = missing ? undefined : start(process.execPath, 'scripts/demo.ts');

test.after.always(async () => {
	for (const demo of demos) {
		demo.child.kill('SIGKILL');
		await demo.exit;
		for (const {pid} of findProcesses(demo.directory)) process.kill(pid, 'SIGKILL');
		for (const name of namespacesOf(demo)) {
			spawnSync('ip', ['netns', 'del', name]);
			await rm(`/etc/netns/${name}`, {recursive: true, force: true});
		}
		await rm(demo.directory, {recursive: true, force: true});
	}
});

/** Names of network namespaces made by that process. */
function namespacesOf({child}: Demo): readonly string[] {
	if (missing) return [];
	const isItsOwn = (name: string) => name.startsWith(`or${child.pid!.toString(36)}`);
	const names = execFileSync('ip', ['netns', 'list'], {encoding: 'utf8'}).split(/\s+/);
	return [...names, ...(existsSync('/etc/netns') ? readdirSync('/etc/netns') : [])].filter(isItsOwn);
}

function assertNothingLeft(t: ExecutionContext, demo: Demo): void {
	t.deepEqual(findProcesses(demo.directory), []);
	t.deepEqual(readdirSync(demo.directory), []);
	t.deepEqual(namespacesOf(demo), []);
}

async function untilSaid(demo: Demo, line: string): Promise<void> {
	await until(`"${line}" of the demo`, () => {
		if (demo.child.exitCode !== null) throw new Error(demo.output());
		return demo.output().includes(line);
	});
}

test('demo › interrupted after the first join, ends what it has started', async t => {
	const demo = await early;
	await untilSaid(demo, 'ok    onramp join on the cluster');
	t.true(findProcesses(demo.directory).length >= 2, 'an agent and an Envoy');
	demo.child.kill('SIGTERM');
	t.is(await demo.exit, 1);
	t.regex(demo.output(), /demo: \d+ passed, 1 failed\n$/);
	assertNothingLeft(t, demo);
});

test('demo › interrupted between machines, ends what runs in them and takes them away', async t => {
	if (!late) {
		t.log(`skipped: ${missing}`);
		return t.pass();
	}
	const demo = await late;
	await untilSaid(demo, 'ok    control plane beside them');
	t.true(namespacesOf(demo).length >= 3);
	demo.child.kill('SIGINT');
	t.is(await demo.exit, 1);
	t.regex(demo.output(), /demo: \d+ passed, 1 failed\n$/);
	assertNothingLeft(t, demo);
});

test('demo › every step holds, and nothing is left of it', async t => {
	const demo = await whole;
	t.is(await demo.exit, 0, demo.output());
	t.regex(demo.output(), /^demo: \d+ passed, 0 failed\n$/m);
	t.regex(demo.output(), /demo: \d{2} passed, 0 failed\n$/);
	assertNothingLeft(t, demo);
});
