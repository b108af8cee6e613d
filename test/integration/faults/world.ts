import {execFile} from 'node:child_process';
import {readdirSync, readFileSync} from 'node:fs';
import {mkdtemp, readdir, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import type {ExecutionContext} from 'ava';
import {type BundleRequest, type Sandbox, type SandboxOptions, startSandbox} from '../../../src/sandbox/index.ts';
import {LocalWorkload, type LocalWorkloadOptions} from '../../../src/sandbox/local-workload.ts';
import type {GateReport, StatusReport} from '../../../src/status/report.ts';
import {buildAgent} from '../../support/agent.ts';
import {ensureEnvoy} from '../../support/envoy.ts';

export const namespace = 'faults';
export const group = {
	name: 'vm',
	namespace,
	serviceAccount: 'vm-sa',
	labels: {app: 'vm'},
	ports: {http: 8080},
};

/** A stop is quick, and no certificate is renewed but by the test. */
const usualFlags = ['--proxy-termination-drain', '0s', '--proxy-drain-ceiling', '1s', '--identity-trial-delay', '1h'];

export interface Outcome {
	/** Null after a signal. */
	readonly code: number | null;
	readonly stdout: string;
	readonly stderr: string;
}

/** A control plane, bundles for it, and what is needed to start agents; everything below one directory. */
export class World {
	readonly sandbox: Sandbox;
	readonly directory: string;
	readonly envoyPath: string;
	readonly agentPath: string;
	readonly #workloads: LocalWorkload[] = [];
	readonly #tokens: string[] = [];

	constructor(sandbox: Sandbox, directory: string, envoyPath: string, agentPath: string) {
		this.sandbox = sandbox;
		this.directory = directory;
		this.envoyPath = envoyPath;
		this.agentPath = agentPath;
	}

	/** A bundle in istioctl's format. */
	async bundle(name = 'bundle', request: Partial<BundleRequest> = {}): Promise<string> {
		const directory = join(this.directory, name);
		await this.sandbox.writeBundle(directory, {group: group.name, namespace, ...request});
		this.#tokens.push(readFileSync(join(directory, 'istio-token'), 'utf8'));
		return directory;
	}

	/** A token, noted so that no log may show it. */
	token(request: Partial<Parameters<Sandbox['issueToken']>[0]> = {}): string {
		const token = this.sandbox.issueToken({namespace, serviceAccount: group.serviceAccount, ...request});
		this.#tokens.push(token);
		return token;
	}

	async workload(options: Partial<LocalWorkloadOptions> & {readonly bundle: string}): Promise<LocalWorkload> {
		const workload = await LocalWorkload.create({
			name: 'vm',
			directory: join(this.directory, `workload-${this.#workloads.length}`),
			address: '127.0.0.1',
			envoyPath: this.envoyPath,
			agentPath: this.agentPath,
			...options,
			flags: [...usualFlags, ...(options.flags ?? [])],
		});
		this.#workloads.push(workload);
		return workload;
	}

	/** Runs a command of the agent's to its end. */
	cli(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Outcome> {
		return runToEnd(process.execPath, [this.agentPath, ...args], env);
	}

	/** The flags that keep a command away from this machine's own files. */
	async places(): Promise<string[]> {
		const config = join(this.directory, 'onramp.yaml');
		await writeFile(config, '', {flag: 'a'});
		const paths = ['--state-dir', join(this.directory, 'state'), '--run-dir', join(this.directory, 'run')];
		return ['--config', config, ...paths, '--envoy', this.envoyPath];
	}

	/** No token and no private key in what agents and Envoys say, in their argument lists, in status, in the bootstrap. */
	async checkSecrets(t: ExecutionContext): Promise<void> {
		// The end of the signature: claims may be told, and what is cut off at the front is a secret all the same.
		const secrets = [...this.#tokens.map(token => token.trim().slice(-32)), 'PRIVATE KEY'];
		for (const workload of this.#workloads) {
			const pids = [workload.pid, workload.envoyPid()].filter(pid => pid !== undefined);
			const texts = {
				log: readOptional(workload.logPath),
				status: await workload.status().then(JSON.stringify, () => ''),
				'argument lists': pids.map(pid => readOptional(`/proc/${pid}/cmdline`)).join('\n'),
				environments: pids.map(pid => readOptional(`/proc/${pid}/environ`)).join('\n'),
				bootstrap: readOptional(join(workload.runDir, 'envoy', 'bootstrap.json')),
				"envoy's log": readOptional(join(workload.stateDir, 'log', 'envoy.log')),
			};
			for (const [where, text] of Object.entries(texts)) {
				if (secrets.some(secret => text.includes(secret))) t.fail(`a secret is in the ${where}`);
			}
		}
	}

	async end(): Promise<void> {
		await Promise.all(this.#workloads.map(workload => workload.destroy()));
		await this.sandbox.stop();
		const left = await killLeft(this.directory);
		await rm(this.directory, {recursive: true, force: true});
		if (left.length > 0) throw new Error(`processes left behind: ${left.join('; ')}`);
	}
}

/** Without the WorkloadGroup when `isGroupMade` is false. */
export async function makeWorld(options: SandboxOptions = {}, isGroupMade = true): Promise<World> {
	const [envoyPath, agentPath] = await Promise.all([ensureEnvoy(), buildAgent()]);
	const directory = await mkdtemp(join(tmpdir(), 'onramp-faults-'));
	const sandbox = await startSandbox(options);
	if (isGroupMade) sandbox.addWorkloadGroup(group);
	return new World(sandbox, directory, envoyPath, agentPath);
}

export function runToEnd(
	file: string,
	args: readonly string[],
	env: Readonly<Record<string, string>> = {},
): Promise<Outcome> {
	return new Promise(resolve => {
		const options = {env: {PATH: process.env['PATH'] ?? '', ...env}, timeout: 60_000, killSignal: 'SIGKILL' as const};
		const child = execFile(file, [...args], options, (_error, stdout, stderr) => {
			resolve({code: child.exitCode, stdout, stderr});
		});
	});
}

export const gateOf = ({gates}: StatusReport, name: string): GateReport => gates.find(gate => gate.name === name)!;

/** Waits until a gate is closed for a reason like this. */
export async function untilClosed(workload: LocalWorkload, name: string, reason: RegExp): Promise<GateReport> {
	const isSo = (report: StatusReport): boolean => {
		const {open, reason: seen} = gateOf(report, name);
		return !open && reason.test(seen);
	};
	return gateOf(await workload.until(`${name} closed, ${String(reason)}`, isSo), name);
}

/** What somebody should look at, one string a line of the log; of these parts alone, if any are named. */
export function complaints(workload: LocalWorkload, ...parts: readonly string[]): string[] {
	return (
		workload
			.log()
			.split('\n')
			.filter(line => /^\S+Z (?:warn|error) /.test(line))
			.filter(line => parts.length === 0 || parts.some(part => line.includes(` ${part}: `)))
			// True of every workload here, whose resolv.conf leads nowhere: said once its first probe has timed out.
			.filter(line => !line.includes(' dns: dns server does not answer server=127.0.0.1 '))
	);
}

/** What was written beside the log: how the agent failed, as a person sees it. */
export function spoken(text: string): string[] {
	return text.split('\n').filter(line => line !== '' && !/^\S+Z (?:debug|info|warn|error) /.test(line));
}

/** Files below the state directory, sorted, without logs; the number of a lock file is left out. Empty when there is no such directory. */
export async function listFiles(directory: string): Promise<string[]> {
	const entries = await readdir(directory, {recursive: true, withFileTypes: true}).catch(() => []);
	return (
		entries
			.filter(entry => !entry.isDirectory())
			.map(entry => join(entry.parentPath, entry.name).slice(directory.length + 1))
			// Of Envoy, the name server and the relay, in their own time; marks of the machine.
			.filter(path => !/^(?:log|dns|relay)\/|^machine\.json$|^\.onramp-tmp-/.test(path))
			.map(path => path.replace(/^identity\/lock\.\d+$/, 'identity/lock'))
			.sort()
	);
}

/** As `listFiles`, once a certificate has been kept: an agent is ready with it before it is on disk. */
export async function listKept(directory: string): Promise<string[]> {
	await until('a certificate on disk', async () => (await listFiles(directory)).includes('identity/current'));
	return listFiles(directory);
}

/** Of an agent that has no certificate yet. */
export const emptyState = ['identity/lock'];
/** Of one that has joined. */
export const joinedState = [
	'identity/current',
	...['cert-chain.pem', 'key.pem', 'meta.json', 'roots.pem'].map(name => `identity/generations/000001/${name}`),
	...emptyState,
];

/** Waits for something that no status tells. */
export async function until(what: string, holds: () => boolean | Promise<boolean>, deadlineMs = 20_000): Promise<void> {
	const deadline = performance.now() + deadlineMs;
	while (!(await holds())) {
		if (performance.now() > deadline) throw new Error(`not within ${deadlineMs / 1000} s: ${what}`);
		await new Promise(resolve => setTimeout(resolve, 10));
	}
}

/** Processes whose arguments name the directory. */
export function processesOf(directory: string): {readonly pid: number; readonly commandLine: string}[] {
	return readdirSync('/proc')
		.filter(name => /^\d+$/.test(name) && Number(name) !== process.pid)
		.map(name => ({pid: Number(name), commandLine: readOptional(`/proc/${name}/cmdline`).replaceAll('\0', ' ')}))
		.filter(({commandLine}) => commandLine.includes(directory));
}

async function killLeft(directory: string): Promise<string[]> {
	// Those that `destroy` has killed may not be gone yet.
	await until('the last process is gone', () => processesOf(directory).length === 0, 5000).catch(() => {});
	const left = processesOf(directory);
	for (const {pid} of left) {
		try {
			process.kill(pid, 'SIGKILL');
		} catch {
			// Gone by itself meanwhile.
		}
	}
	return left.map(({pid, commandLine}) => `${pid} ${commandLine.slice(0, 200)}`);
}

function readOptional(path: string): string {
	try {
		return readFileSync(path, 'utf8');
	} catch {
		return '';
	}
}
