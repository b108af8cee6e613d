// The part of the demo that needs root: two machines, each a network namespace, whose traffic the kernel leads through
// their Envoys. Nothing outside of the namespaces is touched.
import {type ChildProcess, execFile, execFileSync, spawn} from 'node:child_process';
import {accessSync, openSync} from 'node:fs';
import {chmod, chown, mkdir, readdir, readFile, rm, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import type {Echo} from '../src/sandbox/echo-app.ts';
import {fetchStatus, type StatusReport, sendCommand} from '../src/status/index.ts';
import {check, retry, step} from './demo-steps.ts';

/** Agent and Envoy, and the one who calls; no entries in /etc/passwd are needed. */
const [agentUid, callerUid] = ['15337', '15400'];
const namespace = 'demo';
const controlPlane = '198.18.0.1';
const appPort = '8080';

const toolPath = (name: string): string | undefined =>
	['/usr/sbin', '/usr/bin', '/sbin', '/bin'].map(directory => `${directory}/${name}`).find(isThere);

function isThere(path: string): boolean {
	try {
		accessSync(path);
		return true;
	} catch {
		return false;
	}
}

/** Why this part cannot be shown here, or undefined. */
export function whyNoNamespaces(): string | undefined {
	if (process.getuid?.() !== 0) return 'needs root';
	const missing = ['ip', 'nft', 'setpriv', 'curl'].filter(name => toolPath(name) === undefined);
	if (missing.length > 0) return `needs ${missing.join(', ')} (scripts/setup --tests installs them)`;
	const name = `ordemo${process.pid}`;
	try {
		execFileSync('ip', ['netns', 'add', name], {stdio: 'pipe'});
		execFileSync('ip', ['netns', 'exec', name, toolPath('nft')!, 'add table ip t'], {stdio: 'pipe'});
		return undefined;
	} catch {
		return 'needs network namespaces with nftables, which this machine does not give';
	} finally {
		try {
			execFileSync('ip', ['netns', 'del', name], {stdio: 'pipe'});
		} catch {
			// It was never made.
		}
	}
}

interface Machine {
	readonly name: 'cluster' | 'vm';
	readonly netns: string;
	readonly address: string;
	readonly host: string;
	readonly id: string;
}

export async function showCapture(
	directory: string,
	envoyPath: string,
	cleanUps: (() => Promise<unknown>)[],
): Promise<void> {
	const prefix = `ord${process.pid.toString(36)}`;
	const middle = `${prefix}m`;
	const machine = (name: Machine['name'], address: string, host: string): Machine => {
		const id = `spiffe://cluster.local/ns/${namespace}/sa/${name}-sa`;
		return {name, netns: `${prefix}${name[0]}`, address, host, id};
	};
	const cluster = machine('cluster', '198.18.0.10', 'echo.demo.mesh');
	const vm = machine('vm', '198.18.0.20', 'echo-vm.demo.mesh');
	const started: ChildProcess[] = [];
	cleanUps.push(() => removeAll([vm.netns, cluster.netns, middle], started));

	await step('two machines and a network', async () => {
		await mkdir(directory, {recursive: true});
		for (const path of [directory, join(directory, '..')]) await chmod(path, 0o755);
		await writeFile(join(directory, 'onramp.yaml'), '');
		await makeNetwork(middle, [cluster, vm]);
		return {
			value: undefined,
			result: `network namespaces ${[cluster, vm].map(({name, address}) => `${name} ${address}`).join(', ')}`,
		};
	});
	const start = (netns: string, command: readonly string[], stdio: 'pipe' | 'ignore' | number): ChildProcess => {
		const child = spawn('ip', ['netns', 'exec', netns, ...command], {
			stdio: [stdio === 'pipe' ? 'pipe' : 'ignore', stdio, stdio],
		});
		started.push(child);
		return child;
	};
	const control = await startControlPlane(start, middle);
	const agents = new Map<Machine, ChildProcess>();
	const before = new Map<Machine, string>();
	for (const each of [cluster, vm]) {
		before.set(each, await rulesOf(each));
		await define(control, each);
		start(each.netns, [process.execPath, 'src/sandbox/echo-main.ts', `echo on the ${each.name}`, appPort], 'ignore');
		agents.set(each, await joinWithCapture(start, control, each, directory, envoyPath));
	}

	const pairs = [
		[vm, cluster],
		[cluster, vm],
	] as const;
	const seen: string[] = [];
	for (const [caller, called] of pairs)
		await step(`curl on the ${caller.name}`, async () => {
			// The endpoint reaches the caller with the push that follows the registration.
			const echo = await retry(async () => JSON.parse((await curl(caller, called)).stdout) as Echo, 10_000);
			check(
				echo.callerId === caller.id,
				`the application saw ${echo.callerId || 'no identity'}, expected ${caller.id}`,
			);
			check(echo.ownId === called.id, `it was received as ${echo.ownId || 'no identity'}, expected ${called.id}`);
			seen.push(`"${echo.app}" saw ${caller.name}-sa`);
			return {
				value: undefined,
				result: `http://${called.host}/, no proxy setting: "${echo.app}" saw ${echo.callerId}, received as ${echo.ownId}`,
			};
		});
	await step('rules on the VM', async () => {
		const {stdout} = await onramp(vm, directory, envoyPath, 'capture', 'verify');
		return {value: undefined, result: stdout.trim().replaceAll(/\n\s*/g, '; ').replace('capture: ', '')};
	});

	const after: string[] = [];
	await step('onramp capture remove on both', async () => {
		for (const each of [cluster, vm]) {
			const {code, stderr} = await onramp(each, directory, envoyPath, 'capture', 'remove');
			check(code === 0, stderr);
			check((await rulesOf(each)) === before.get(each), `the rules of the ${each.name} are not as they were`);
		}
		for (const [caller, called] of pairs) {
			const {code, stderr} = await curl(caller, called);
			check(code !== 0, `curl from the ${caller.name} still gets an answer`);
			after.push(stderr.trim().replace(/^curl: /, ''));
		}
		return {value: undefined, result: 'rule sets of both machines as before, byte for byte'};
	});
	for (const [i, [caller]] of pairs.entries())
		await step(`with and without: ${caller.name}`, async () => ({
			value: undefined,
			result: `captured: ${seen[i]!.padEnd(36)} | removed: ${after[i]}`,
		}));

	await step('captured again, then stopped', async () => {
		for (const each of [cluster, vm]) {
			// It does not put back what a person has taken away, until it is asked to.
			await retry(async () => check(!(await fetchStatus(socketOf(each, directory))).ready, 'still green'), 30_000);
			await sendCommand(socketOf(each, directory), 'retry');
			await untilReady(each, directory);
			check((await rulesOf(each)) !== before.get(each), 'no rules were put in');
			const agent = agents.get(each)!;
			const ended = new Promise(resolve => agent.once('exit', resolve));
			agent.kill('SIGTERM');
			check((await ended) === 0, `the agent of the ${each.name} did not end in order`);
			check((await rulesOf(each)) === before.get(each), `the agent of the ${each.name} left rules behind`);
		}
		return {value: undefined, result: 'each agent took its rules away before its Envoy ended'};
	});
}

type Start = (netns: string, command: readonly string[], stdio: 'pipe' | 'ignore' | number) => ChildProcess;
type Control = (...command: readonly unknown[]) => Promise<void>;

/** One wire each to a bridge in the middle, where the control plane is. */
async function makeNetwork(middle: string, machines: readonly Machine[]): Promise<void> {
	for (const name of [middle, ...machines.map(({netns}) => netns)]) await must('ip', ['netns', 'add', name]);
	const inside = (netns: string, ...lines: readonly string[]) =>
		must('ip', ['-n', netns, '-batch', '-'], `${lines.join('\n')}\n`);
	await inside(
		middle,
		'link set lo up',
		'link add br0 type bridge',
		`addr add ${controlPlane}/24 dev br0`,
		'link set br0 up',
	);
	for (const {netns, name, address} of machines) {
		// Read in place of the machine's own by what runs in there. Nobody answers on that address.
		await mkdir(`/etc/netns/${netns}`, {recursive: true});
		await writeFile(`/etc/netns/${netns}/resolv.conf`, `nameserver ${controlPlane}\n`);
		await inside(middle, `link add ${name} type veth peer name eth0 netns ${netns}`, `link set ${name} master br0 up`);
		await inside(
			netns,
			...['link set lo up', 'link set eth0 addrgenmode none', 'link set eth0 up'],
			...[`addr add ${address}/24 dev eth0`, `route add default via ${controlPlane}`],
		);
	}
}

async function startControlPlane(start: Start, netns: string): Promise<Control> {
	return step('control plane beside them', async () => {
		const options = ['--host', controlPlane, '--port', '15012', '--app-port', '0', '--strict'];
		const child = start(netns, [process.execPath, 'src/sandbox/main.ts', ...options], 'pipe');
		const events: {readonly event: string; readonly error?: string}[] = [];
		createInterface({input: child.stdout!}).on('line', line => events.push(JSON.parse(line)));
		const said = (from: number, ...names: readonly string[]) =>
			retry(async () => {
				const found = events.slice(from).find(({event}) => names.includes(event));
				check(found !== undefined, `the control plane does not say ${names.join(' or ')}`);
				return found!;
			}, 30_000);
		await said(0, 'started');
		const value: Control = async (...command) => {
			const from = events.length;
			child.stdin!.write(`${JSON.stringify(command)}\n`);
			const {error} = await said(from, 'done', 'failed');
			check(error === undefined, String(error));
		};
		return {value, result: `${controlPlane}:15012, STRICT mutual TLS`};
	});
}

async function define(control: Control, {name, host}: Machine): Promise<void> {
	const labels = {app: name};
	await control('addWorkloadGroup', {name, namespace, serviceAccount: `${name}-sa`, labels});
	await control('addService', {
		host,
		namespace,
		port: 80,
		targetPort: Number(appPort),
		protocol: 'http',
		selector: labels,
	});
}

/** Flags for every command on that machine. */
const flagsOf = ({name, address}: Machine, directory: string, envoyPath: string): readonly string[] => [
	...['--config', join(directory, name, 'onramp.yaml'), '--name', name, '--address', address, '--envoy', envoyPath],
	...['--run-dir', join(directory, name, 'run'), '--state-dir', join(directory, name, 'state'), '--notify', 'false'],
	...['--capture', 'true', '--capture-users', agentUid, '--capture-groups', agentUid],
	...['--proxy-concurrency', '1', '--proxy-termination-drain', '500ms'],
];

/** `onramp join` as a user of its own, with the one right that capture needs. */
async function joinWithCapture(
	start: Start,
	control: Control,
	machine: Machine,
	directory: string,
	envoyPath: string,
): Promise<ChildProcess> {
	const {name, netns} = machine;
	return step(`join with capture: ${name}`, async () => {
		const own = join(directory, name);
		const bundle = join(directory, `${name}-bundle`);
		await mkdir(own);
		await control('writeBundle', bundle, {group: name, namespace, ingressAddress: controlPlane});
		await writeFile(join(own, 'onramp.yaml'), '');
		for (const path of [
			own,
			join(own, 'onramp.yaml'),
			bundle,
			...(await readdir(bundle)).map(file => join(bundle, file)),
		])
			await chown(path, Number(agentUid), Number(agentUid));
		const logPath = join(directory, `${name}.log`);
		const child = start(
			netns,
			[
				...['setpriv', '--reuid', agentUid, '--regid', agentUid, '--clear-groups'],
				...['--inh-caps', '+net_admin', '--ambient-caps', '+net_admin', '--bounding-set', '-all,+net_admin'],
				...[process.execPath, 'dist/onramp.cjs', 'join', bundle, '--install-to', join(own, 'bundle')],
				...flagsOf(machine, directory, envoyPath),
			],
			openSync(logPath, 'w'),
		);
		const report = await untilReady(machine, directory);
		const {reason} = report.gates.find(gate => gate.name === 'capture')!;
		return {value: child, result: `uid ${agentUid} with CAP_NET_ADMIN alone; ${reason}`};
	});
}

const socketOf = ({name}: Machine, directory: string): string => join(directory, name, 'run/control.sock');

const untilReady = (machine: Machine, directory: string): Promise<StatusReport> =>
	retry(async () => {
		const status = await fetchStatus(socketOf(machine, directory)).catch(() => undefined);
		const log = await readFile(join(directory, `${machine.name}.log`), 'utf8').catch(() => '');
		check(status?.ready === true, `the agent is not ready: ${log.slice(-3000)}`);
		return status!;
	}, 60_000);

/** Somebody at that machine, as root. */
const onramp = (machine: Machine, directory: string, envoyPath: string, ...command: readonly string[]) =>
	run('ip', [
		...['netns', 'exec', machine.netns, process.execPath, 'dist/onramp.cjs', ...command],
		...['--namespace', namespace, ...flagsOf(machine, directory, envoyPath)],
	]);

const curl = ({netns}: Machine, {host}: Machine): Promise<Outcome> =>
	run('ip', [
		...['netns', 'exec', netns, 'setpriv', '--reuid', callerUid, '--regid', callerUid, '--clear-groups'],
		...['env', '-i', toolPath('curl')!, '--silent', '--show-error', '--fail', '--max-time', '5', `http://${host}/`],
	]);

/** As the kernel has them, without counters. */
const rulesOf = async ({netns}: Machine): Promise<string> =>
	(await must('ip', ['netns', 'exec', netns, toolPath('nft')!, '-s', 'list', 'ruleset'])) +
	(await must('ip', ['-n', netns, 'rule'])) +
	(await must('ip', ['-n', netns, 'addr', 'show', 'dev', 'lo']));

interface Outcome {
	readonly code: number;
	readonly stdout: string;
	readonly stderr: string;
}

function run(program: string, args: readonly string[], input?: string): Promise<Outcome> {
	return new Promise(resolve => {
		const child = execFile(program, [...args], (error, stdout, stderr) =>
			resolve({code: error ? Number(error.code ?? -1) : 0, stdout, stderr}),
		);
		child.stdin!.end(input);
	});
}

async function must(program: string, args: readonly string[], input?: string): Promise<string> {
	const {code, stdout, stderr} = await run(program, args, input);
	check(code === 0, `${program} ${args.join(' ')}: ${stderr.trim()}`);
	return stdout;
}

/** What runs in a namespace is what was started there. */
async function removeAll(names: readonly string[], started: readonly ChildProcess[]): Promise<void> {
	for (const child of started) child.kill('SIGKILL');
	for (const name of names) {
		await retry(async () => {
			const {stdout} = await run('ip', ['netns', 'pids', name]);
			for (const pid of stdout.split('\n').filter(Boolean)) process.kill(Number(pid), 'SIGKILL');
			check(stdout === '', `something runs on in ${name}`);
		}, 10_000);
		await run('ip', ['netns', 'del', name]);
		await rm(`/etc/netns/${name}`, {recursive: true, force: true});
	}
}
