import {type ChildProcess, execFile, spawn} from 'node:child_process';
import {once} from 'node:events';
import {writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {promisify} from 'node:util';
import {type Agent, startUntilReady} from './agent.ts';
import {killAtEnd, killNow} from './cleanup.ts';
import {quantile, readCpuMs} from './figures.ts';
import {type Bench, type Contender, contenders, withAgent, withControlPlane} from './setup.ts';

const clientCounts = [1, 10, 100] as const;
const kinds = ['mesh', 'foreign'] as const;
type Kind = (typeof kinds)[number];

const services = 1000;
const names: Readonly<Record<Kind, readonly string[]>> = {
	mesh: Array.from(
		{length: 200},
		(_, index) => `svc-${String(index * 5).padStart(5, '0')}.synthetic.svc.cluster.local`,
	),
	// Different ones, so that identical questions in flight do not help.
	foreign: Array.from({length: 500}, (_, index) => `host-${index}.example.com`),
};

/** Port 53 of an address that nobody else has: resolv.conf has no room for ports. */
const upstreamAddress = '127.9.9.53';

interface Figures {
	readonly p50: number[];
	readonly p99: number[];
	/** Wall-clock time a question. */
	readonly each: number[];
	/** CPU time of the agent a question. */
	readonly cpu: number[];
}

interface Run {
	readonly count: number;
	readonly lost: number;
	readonly latenciesUs: readonly number[];
	readonly ms: number;
}

/** Names of the mesh and names of others, answered over UDP to 1, 10 and 100 clients; turns alternate. */
export async function measureDns(bench: Bench): Promise<void> {
	const wanted = kinds.filter(kind => bench.wants(`dns-${kind}`));
	if (wanted.length === 0) return;
	if (wanted.includes('foreign') && process.getuid?.() !== 0) {
		bench.say('rows dns-foreign are left out: they need port 53 and a mount namespace, so root');
		wanted.splice(wanted.indexOf('foreign'), 1);
	}
	const results = new Map<string, Figures>();
	const upstream = wanted.includes('foreign') ? await startUpstream() : undefined;
	const resolvConfPath = join(bench.directory, 'resolv.conf');
	await writeFile(resolvConfPath, `nameserver ${upstreamAddress}\n`);
	try {
		await withControlPlane(bench, async plane => {
			await plane.setServices(services);
			for (let round = 0; round < (bench.isQuick ? 1 : 3); round++) {
				for (const who of contenders(bench))
					await withAgent(bench, plane, who, agent => measureAgent(bench, who, agent, wanted, results), {
						resolvConfPath,
					});
			}
		});
	} finally {
		upstream?.kill('SIGKILL');
	}
	report(bench, wanted, results);
}

async function measureAgent(
	bench: Bench,
	who: Contender,
	agent: Agent,
	wanted: readonly Kind[],
	results: Map<string, Figures>,
): Promise<void> {
	await startUntilReady(agent);
	const ms = bench.isQuick ? 1000 : 3000;
	for (const kind of wanted) {
		// Code is made fast by use, and tables arrive.
		await runClient(agent.dnsPort, 10, ms / 2, names[kind]);
		for (const clients of clientCounts) {
			const cpuMs = readCpuMs(agent.pid);
			const run = await runClient(agent.dnsPort, clients, ms, names[kind]);
			if (run.lost > 0) throw new Error(`${run.lost} of ${run.count + run.lost} questions were not answered`);
			const key = `${who} ${kind} ${clients}`;
			const figures = results.get(key) ?? {p50: [], p99: [], each: [], cpu: []};
			results.set(key, figures);
			figures.p50.push(quantile(run.latenciesUs, 0.5));
			figures.p99.push(quantile(run.latenciesUs, 0.99));
			figures.each.push((run.ms * 1000) / run.count);
			figures.cpu.push(((readCpuMs(agent.pid) - cpuMs) * 1000) / run.count);
			bench.say(
				`dns ${kind}, ${clients} clients, ${agent.label}: ${Math.round((run.count / run.ms) * 1000)} questions/s`,
			);
		}
	}
}

async function runClient(port: number, clients: number, ms: number, of: readonly string[]): Promise<Run> {
	const script = fileURLToPath(new URL('dns-client.ts', import.meta.url));
	const args = [script, String(port), String(clients), String(ms), ...of];
	const {stdout} = await promisify(execFile)(process.execPath, args, {maxBuffer: 256 * 2 ** 20});
	return JSON.parse(stdout) as Run;
}

async function startUpstream(): Promise<ChildProcess> {
	const script = fileURLToPath(new URL('dns-upstream.ts', import.meta.url));
	const child = spawn(process.execPath, [script, upstreamAddress], {stdio: ['pipe', 'pipe', 'inherit']});
	killAtEnd(() => killNow(child.pid));
	await Promise.race([
		once(child.stdout!, 'data'),
		once(child, 'exit').then(() => Promise.reject(new Error(`nobody can listen on ${upstreamAddress}:53`))),
	]);
	return child;
}

function report(bench: Bench, wanted: readonly Kind[], results: ReadonlyMap<string, Figures>): void {
	const titles = {mesh: 'name of the mesh', foreign: 'name of others'} as const;
	for (const kind of wanted) {
		for (const clients of clientCounts) {
			const [onramp, peer] = (['onramp', 'peer'] as const).map(who => results.get(`${who} ${kind} ${clients}`));
			const row = (id: keyof Figures, title: string) =>
				bench.report({
					id: `dns-${kind}-${clients}-${id}`,
					title: `${titles[kind]}, ${clients} client${clients > 1 ? 's' : ''}, ${title}`,
					unit: 'µs',
					onramp: onramp?.[id] ?? [],
					peer: peer?.[id] ?? [],
				});
			row('p50', 'p50');
			row('p99', 'p99');
			row('each', 'time a question');
			row('cpu', 'CPU a question');
		}
	}
}
