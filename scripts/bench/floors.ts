import {type ChildProcess, spawn} from 'node:child_process';
import {once} from 'node:events';
import {mkdir, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {killAtEnd, killNow} from './cleanup.ts';
import {readCpuMs, sleep} from './figures.ts';
import {get} from './http.ts';
import type {Bench} from './setup.ts';

/** As much as 5,000 services take, in as many answers. */
const answers = {count: 5, bytes: 2 * 2 ** 20};

/**
 * What no agent of this make gets below: Node until its first line, Envoy until it serves with nothing to ask anybody
 * for, and the CPU of a relay of gRPC that only passes on what a push of 5,000 services brings. The goals for starts and
 * pushes are to be read beside them.
 */
export async function measureFloors(bench: Bench): Promise<void> {
	if (!bench.wants('floor')) return;
	const rounds = bench.isQuick ? 3 : 9;
	const directory = join(bench.directory, 'floors');
	await mkdir(directory);
	const [node, envoy, relay]: [number[], number[], number[]] = [[], [], []];
	for (let round = 0; round < rounds; round++) {
		node.push(await untilFirstLine());
		envoy.push(await untilServing(bench.envoyPath, join(directory, `${round}`)));
		relay.push(await cpuOfRelay(join(directory, `relay-${round}`)));
	}
	const row = {unit: 'ms', peer: []} as const;
	bench.report({id: 'floor-node', title: 'Node alone: start → first line', onramp: node, ...row});
	bench.report({id: 'floor-envoy', title: 'Envoy alone, static configuration: start → serves', onramp: envoy, ...row});
	bench.report({id: 'floor-push-cpu', title: 'gRPC relay that only passes 10 MiB on: CPU', onramp: relay, ...row});
}

async function untilFirstLine(): Promise<number> {
	const fromMs = performance.now();
	const child = start(process.execPath, ['-e', 'process.stdout.write("x")']);
	await once(child.stdout!, 'data');
	const tookMs = performance.now() - fromMs;
	await once(child, 'close');
	return tookMs;
}

async function untilServing(envoyPath: string, directory: string): Promise<number> {
	await mkdir(directory);
	const socketPath = join(directory, 'admin.sock');
	const bootstrap = join(directory, 'envoy.json');
	await writeFile(bootstrap, JSON.stringify({admin: {address: {pipe: {path: socketPath}}}}));
	const fromMs = performance.now();
	const child = start(envoyPath, ['-c', bootstrap, '--disable-hot-restart', '--concurrency', '1', '-l', 'off']);
	for (;;) {
		const isReady = await get({socketPath}, '/ready').then(
			({status}) => status === 200,
			() => false,
		);
		if (isReady) break;
		if (child.exitCode !== null) throw new Error(`envoy ended with ${child.exitCode}`);
		await sleep(2);
	}
	const tookMs = performance.now() - fromMs;
	await end(child);
	return tookMs;
}

async function cpuOfRelay(prefix: string): Promise<number> {
	const sockets = [`${prefix}-up.sock`, `${prefix}-down.sock`];
	const part = (role: string) =>
		start(process.execPath, ['scripts/bench/floor-relay.ts', role, ...sockets, `${answers.count}`, `${answers.bytes}`]);
	const up = part('up');
	await once(up.stdout!, 'data');
	const relay = part('relay');
	await once(relay.stdout!, 'data');
	const before = readCpuMs(relay.pid!);
	const down = part('down');
	await once(down.stdout!, 'data');
	// As the rows of pushes: until one second after.
	await sleep(1000);
	const cpuMs = readCpuMs(relay.pid!) - before;
	await Promise.all([up, relay, down].map(end));
	return cpuMs;
}

function start(file: string, args: readonly string[]): ChildProcess {
	const child = spawn(file, args, {stdio: ['ignore', 'pipe', 'inherit']});
	const forget = killAtEnd(() => killNow(child.pid));
	child.once('close', forget);
	return child;
}

async function end(child: ChildProcess): Promise<void> {
	const closed = once(child, 'close');
	killNow(child.pid);
	await closed;
}
