// Network namespaces of the tests' own: a "VM" whose traffic is captured, and the rest of the world on the far side.
import {type ChildProcess, execFile, spawn} from 'node:child_process';
import {accessSync} from 'node:fs';
import {chmod, mkdir, mkdtemp, readFile, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import {createInterface} from 'node:readline';
import {fileURLToPath} from 'node:url';
import type {ExecutionContext} from 'ava';
import {buildAgent} from './agent.ts';
import {ensureEnvoy} from './envoy.ts';
import {until} from './mesh.ts';

/** Agent and Envoy; no entry in /etc/passwd is needed. */
export const meshUid = 15_337;
/** The application. */
export const appUid = 15_400;

export const address = {
	vm: {ip: '198.18.0.11', ip6: '2001:db8::11'},
	far: {ip: '198.18.0.1', ip6: '2001:db8::1'},
	/** A second one of the far side, for lists and exclusions. */
	other: {ip: '198.18.1.1', ip6: '2001:db8:1::1'},
	metadata: {ip: '169.254.169.254', ip6: 'fd00:ec2::254'},
} as const;

const toolsDirectories = ['/usr/sbin', '/usr/bin', '/sbin', '/bin'];

/** Path of a system tool; PATH is not asked, as npm puts programs of the same names there. */
export function toolPath(name: string): string | undefined {
	for (const directory of toolsDirectories) {
		try {
			accessSync(`${directory}/${name}`);
			return `${directory}/${name}`;
		} catch {
			// The next one, perhaps.
		}
	}
	return undefined;
}

/** Why these tests cannot run here, or undefined. */
export function missingForNetns(tools: readonly string[] = ['ip', 'nft', 'setpriv']): string | undefined {
	if (process.getuid?.() !== 0) return 'needs root';
	const missing = tools.filter(name => toolPath(name) === undefined);
	return missing.length > 0 ? `needs ${missing.join(', ')}` : undefined;
}

/** A test that needs root, a kernel with the tools, and a name space; skipped with the reason otherwise. */
export function skippedWithout(t: ExecutionContext, tools?: readonly string[]): boolean {
	const reason = missingForNetns(tools);
	if (reason === undefined) return false;
	t.log(`skipped: ${reason}`);
	t.pass();
	return true;
}

export const backends = ['nft', 'iptables-nft', 'iptables-legacy'] as const;

export const toolsOf = (backend: (typeof backends)[number]): readonly string[] => [
	'ip',
	'setpriv',
	'nft',
	...(backend === 'nft' ? [] : [`${backend}-restore`]),
];

/** A table of iptables-legacy, once looked at, stays for as long as the namespace does. */
export async function primeTables({vm}: World): Promise<void> {
	for (const program of ['iptables-legacy', 'ip6tables-legacy'])
		for (const table of ['raw', 'mangle', 'nat', 'filter']) await vm.must(program, ['-t', table, '-S']);
}

export interface Output {
	readonly code: number;
	readonly stdout: string;
	readonly stderr: string;
}

export function execute(program: string, args: readonly string[], input?: string): Promise<Output> {
	return new Promise(resolve => {
		const child = execFile(
			toolPath(program) ?? program,
			[...args],
			{maxBuffer: 64 * 1024 * 1024, env: {PATH: toolsDirectories.join(':')}},
			(error, stdout, stderr) => resolve({code: error ? Number(error.code ?? -1) : 0, stdout, stderr}),
		);
		if (input !== undefined) child.stdin!.end(input);
	});
}

async function must(program: string, args: readonly string[], input?: string): Promise<string> {
	const {code, stdout, stderr} = await execute(program, args, input);
	if (code !== 0) throw new Error(`${program} ${args.join(' ')}: ${stderr || stdout}`);
	return stdout;
}

let count = 0;

export interface World {
	readonly directory: string;
	readonly vm: Namespace;
	readonly far: Namespace;
	/** Runs `onramp capture …` in the VM's namespace with settings of the tests. */
	capture(
		args: readonly string[],
		options?: {readonly uid?: number; readonly env?: Readonly<Record<string, string>>},
	): Promise<Output>;
	/** The command line of that, for tests that kill it. */
	captureCommand(args: readonly string[]): readonly string[];
	startEnvoy(options?: {readonly isTransparent?: boolean}): Promise<ChildProcess>;
	/** Command lines of what runs in the VM. */
	processes(): Promise<string>;
	/** All rules of the namespace as every tool shows them, without counters. */
	dump(): Promise<string>;
}

export class Namespace {
	readonly name: string;
	readonly #started: ChildProcess[] = [];

	constructor(name: string) {
		this.name = name;
	}

	run(program: string, args: readonly string[], input?: string): Promise<Output> {
		return execute('ip', ['netns', 'exec', this.name, toolPath(program) ?? program, ...args], input);
	}

	async must(program: string, args: readonly string[], input?: string): Promise<string> {
		return must('ip', ['netns', 'exec', this.name, toolPath(program) ?? program, ...args], input);
	}

	spawn(
		command: readonly string[],
		options: {
			readonly uid?: number;
			readonly stdio?: 'pipe' | 'ignore';
			readonly isNetworkAdmin?: boolean;
			readonly stderr?: (text: string) => void;
		} = {},
	): ChildProcess {
		const {uid, stdio = 'pipe', isNetworkAdmin = false} = options;
		const capability = isNetworkAdmin ? ['--inh-caps', '+net_admin', '--ambient-caps', '+net_admin'] : [];
		const identity =
			uid === undefined
				? []
				: ['setpriv', '--reuid', String(uid), '--regid', String(uid), '--clear-groups', ...capability];
		const child = spawn(toolPath('ip')!, ['netns', 'exec', this.name, ...identity, ...command], {
			stdio: [stdio, stdio, options.stderr ? 'pipe' : 'inherit'],
		});
		child.stderr?.on('data', (chunk: Buffer) => options.stderr?.(chunk.toString()));
		this.#started.push(child);
		return child;
	}

	/** Somebody in the namespace who listens and asks. */
	async peer(uid: number = appUid): Promise<Peer> {
		const script = join(dirname(fileURLToPath(import.meta.url)), 'netns-peer.ts');
		const child = this.spawn([process.execPath, script], {uid});
		return Peer.of(child);
	}

	async destroy(): Promise<void> {
		for (const child of this.#started) child.kill('SIGKILL');
		const {stdout} = await execute('ip', ['netns', 'pids', this.name]);
		for (const pid of stdout.split('\n').filter(line => line !== '')) {
			try {
				process.kill(Number(pid), 'SIGKILL');
			} catch {
				// Gone already.
			}
		}
		await until(
			`the processes in ${this.name} to end`,
			async () => (await execute('ip', ['netns', 'pids', this.name])).stdout === '',
		);
		await execute('ip', ['netns', 'del', this.name]);
		await rm(`/etc/netns/${this.name}`, {recursive: true, force: true});
	}
}

export interface Answer {
	readonly via?: 'envoy' | 'direct';
	readonly peer?: string;
	readonly error?: string;
}

export class Peer {
	readonly child: ChildProcess;
	readonly #waiting = new Map<number, {resolve(value: unknown): void; reject(error: Error): void}>();
	#next = 1;

	private constructor(child: ChildProcess) {
		this.child = child;
	}

	static async of(child: ChildProcess): Promise<Peer> {
		const peer = new Peer(child);
		const started = new Promise((resolve, reject) => peer.#waiting.set(0, {resolve, reject}));
		createInterface({input: child.stdout!}).on('line', line => {
			const {id, result, error} = JSON.parse(line) as {id: number; result?: unknown; error?: string};
			const waiting = peer.#waiting.get(id);
			peer.#waiting.delete(id);
			if (error === undefined) waiting?.resolve(result);
			else waiting?.reject(new Error(error));
		});
		child.once('exit', () => {
			for (const {reject} of peer.#waiting.values()) reject(new Error('the peer has ended'));
		});
		await started;
		return peer;
	}

	send<T>(command: string, fields: Readonly<Record<string, unknown>> = {}): Promise<T> {
		const id = this.#next++;
		return new Promise((resolve, reject) => {
			this.#waiting.set(id, {resolve: value => resolve(value as T), reject});
			this.child.stdin!.write(`${JSON.stringify({id, command, ...fields})}\n`);
		});
	}

	listen(host: string, port: number): Promise<unknown> {
		return this.send('listen', {host, port});
	}

	ask(
		host: string,
		port: number,
		options: {
			readonly from?: string;
			readonly fromPort?: number;
			readonly withinMs?: number;
			readonly hold?: number;
			/** `reset`: the other end resets the connection. */
			readonly say?: 'hi' | 'reset';
		} = {},
	): Promise<Answer> {
		return this.send<Answer>('ask', {host, port, ...options});
	}

	askAgain(hold: number, options: {readonly say?: 'hi' | 'reset'} = {}): Promise<Answer> {
		return this.send<Answer>('askAgain', {hold, ...options});
	}

	/** Says nothing, and waits for the other end to. */
	awaitEnd(hold: number, withinMs: number): Promise<Answer> {
		return this.send<Answer>('awaitEnd', {hold, withinMs});
	}

	serveNames(host: string, port: number, name: string, options: {readonly silent?: boolean} = {}): Promise<unknown> {
		return this.send('serveNames', {host, port, name, ...options});
	}

	/** @param fromPort - over UDP */
	askName(
		server: string,
		protocol: 'udp' | 'tcp' = 'udp',
		fromPort?: number,
	): Promise<{readonly name?: string; readonly error?: string}> {
		return this.send('askName', {server, protocol, ...(fromPort && {fromPort})});
	}
}

/** Two namespaces and the wire between them; all is gone when the test ends. */
export async function makeWorld(
	t: Pick<ExecutionContext, 'teardown'>,
	{ipv6 = true, flags: more = []}: {readonly ipv6?: boolean; readonly flags?: readonly string[]} = {},
): Promise<World> {
	const prefix = `or${process.pid.toString(36)}${(count++).toString(36)}`;
	const directory = await mkdtemp(join(tmpdir(), 'onramp-netns-'));
	// Envoy runs as another user and reads its configuration there.
	await chmod(directory, 0o755);
	const [vm, far] = [new Namespace(`${prefix}v`), new Namespace(`${prefix}f`)];
	t.teardown(async () => {
		await vm.destroy();
		await far.destroy();
		await rm(directory, {recursive: true, force: true});
	});
	await mkdir(`/etc/netns/${vm.name}`, {recursive: true});
	await writeFile(
		`/etc/netns/${vm.name}/resolv.conf`,
		`nameserver ${address.far.ip}\n${ipv6 ? `nameserver ${address.far.ip6}\n` : ''}`,
	);
	for (const {name} of [vm, far]) await must('ip', ['netns', 'add', name]);
	if (!ipv6)
		for (const scope of ['all', 'default', 'lo'])
			await vm.must('sysctl', ['-q', '-w', `net.ipv6.conf.${scope}.disable_ipv6=1`]);
	// The wire is made in place: neither end is ever in the machine's own namespace.
	await must('ip', ['-n', far.name, 'link', 'add', 'vm0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', vm.name]);
	const only6 = (lines: string) => (ipv6 ? lines : '');
	await must(
		'ip',
		['-n', far.name, '-batch', '-'],
		`link set lo up\nlink set vm0 up\naddr add ${address.far.ip}/24 dev vm0\naddr add ${address.other.ip}/32 dev lo\naddr add ${address.metadata.ip}/32 dev lo\n` +
			`addr add ${address.far.ip6}/64 dev vm0 nodad\naddr add ${address.other.ip6}/128 dev lo nodad\naddr add ${address.metadata.ip6}/128 dev lo nodad\n`,
	);
	await must(
		'ip',
		['-n', vm.name, '-batch', '-'],
		`link set lo up\nlink set eth0 addrgenmode none up\naddr add ${address.vm.ip}/24 dev eth0\nroute add default via ${address.far.ip}\n${only6(
			`addr add ${address.vm.ip6}/64 dev eth0 nodad\nroute add default via ${address.far.ip6}\n`,
		)}`,
	);
	const agentPath = await buildAgent();
	const config = join(directory, 'onramp.yaml');
	await writeFile(config, '');
	const flags = [
		...[
			'--config',
			config,
			'--namespace',
			'test',
			'--run-dir',
			join(directory, 'run'),
			'--state-dir',
			join(directory, 'state'),
		],
		...['--capture-users', String(meshUid), '--capture-groups', String(meshUid), '--capture-wait', '10s'],
		...more,
	];
	const captureCommand = (args: readonly string[]) => [
		process.execPath,
		agentPath,
		'capture',
		args[0]!,
		...flags,
		...args.slice(1),
	];
	return {
		directory,
		vm,
		far,
		captureCommand,
		capture: (args, {uid, env = {}} = {}) =>
			execute('ip', [
				...['netns', 'exec', vm.name],
				...(uid === undefined ? [] : ['setpriv', '--reuid', String(uid), '--regid', String(uid), '--clear-groups']),
				...['env', ...Object.entries(env).map(([name, value]) => `${name}=${value}`)],
				...captureCommand(args),
			]),
		startEnvoy: ({isTransparent = false} = {}) => startCatcher(vm, directory, ipv6, isTransparent),
		processes: async () => {
			const {stdout} = await execute('ip', ['netns', 'pids', vm.name]);
			const lines = await Promise.all(
				stdout.split('\n').map(pid => readFile(`/proc/${pid}/cmdline`, 'latin1').catch(() => '')),
			);
			return lines.join('\n').replaceAll('\0', ' ');
		},
		dump: async () =>
			(
				await Promise.all(
					[
						['nft', '-s', 'list', 'ruleset'],
						['ip', '-4', 'rule'],
						['ip', '-6', 'rule'],
						['ip', '-4', 'route', 'show', 'table', 'all'],
						['ip', '-6', 'route', 'show', 'table', 'all'],
						['ip', 'addr', 'show', 'dev', 'lo'],
						['iptables-nft-save'],
						['ip6tables-nft-save'],
						['iptables-legacy-save'],
						['ip6tables-legacy-save'],
					].map(async ([program, ...args]) => {
						const {stdout} = await vm.run(program!, args);
						return `# ${program} ${args.join(' ')}\n${(program === 'nft' ? withoutCompat(stdout) : stdout)
							.replaceAll(/^#.*\n/gm, '')
							.replaceAll(/\[\d+:\d+\]/g, '[0:0]')
							.replaceAll(/^.*fe80:.*\n/gm, '')}`;
					}),
				)
			).join('\n'),
	};
}

/** A second VM on another wire of the far side, which forwards between the two. */
export async function addVm(t: Pick<ExecutionContext, 'teardown'>, {vm: first, far}: World): Promise<Namespace> {
	const vm = new Namespace(`${first.name}2`);
	t.teardown(() => vm.destroy());
	await mkdir(`/etc/netns/${vm.name}`, {recursive: true});
	await writeFile(`/etc/netns/${vm.name}/resolv.conf`, `nameserver ${secondWire.far}\n`);
	await must('ip', ['netns', 'add', vm.name]);
	await must('ip', ['-n', far.name, 'link', 'add', 'vm1', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', vm.name]);
	await must('ip', ['-n', far.name, '-batch', '-'], `link set vm1 up\naddr add ${secondWire.far}/24 dev vm1\n`);
	await far.must('sysctl', ['-q', '-w', 'net.ipv4.ip_forward=1']);
	await must(
		'ip',
		['-n', vm.name, '-batch', '-'],
		`link set lo up\nlink set eth0 up\naddr add ${secondWire.vm}/24 dev eth0\nroute add default via ${secondWire.far}\n`,
	);
	return vm;
}

export const secondWire = {vm: '198.18.2.11', far: '198.18.2.1'} as const;

/** A container of the VM's, behind a bridge as docker makes it; the VM forwards for it. */
export async function addGuest(t: ExecutionContext, {vm, far}: World): Promise<Namespace> {
	const guest = new Namespace(`${vm.name}g`);
	t.teardown(() => guest.destroy());
	await must('ip', ['netns', 'add', guest.name]);
	await must(
		'ip',
		['-n', vm.name, '-batch', '-'],
		`link add docker0 type bridge\nlink set docker0 addrgenmode none up\naddr add ${guestWire.vm}/24 dev docker0\n` +
			`link add veth0 type veth peer name eth0 netns ${guest.name}\nlink set veth0 addrgenmode none up master docker0\n`,
	);
	await must(
		'ip',
		['-n', guest.name, '-batch', '-'],
		`link set lo up\nlink set eth0 addrgenmode none up\naddr add ${guestWire.guest}/24 dev eth0\nroute add default via ${guestWire.vm}\n`,
	);
	await vm.must('sysctl', ['-q', '-w', 'net.ipv4.ip_forward=1']);
	await must('ip', ['-n', far.name, 'route', 'add', `${guestWire.guest}/32`, 'via', address.vm.ip]);
	return guest;
}

export const guestWire = {vm: '198.18.3.1', guest: '198.18.3.2'} as const;

/** nft shows rules of iptables-nft now one way, now another; iptables-nft-save shows them as they are. */
function withoutCompat(ruleset: string): string {
	let isCompat = false;
	return ruleset
		.split('\n')
		.filter(line => {
			if (line.startsWith('table ')) isCompat = /^table ip6? (?:raw|mangle|nat|filter) /.test(line);
			return !isCompat || !line.startsWith('\t\t') || line.startsWith('\t\ttype ');
		})
		.join('\n');
}

/** A real Envoy that takes what is redirected, and tells the other end so by a PROXY line. */
async function startCatcher(
	vm: Namespace,
	directory: string,
	ipv6: boolean,
	isTransparent: boolean,
): Promise<ChildProcess> {
	const path = join(directory, 'envoy.json');
	await writeFile(path, JSON.stringify(catcher(ipv6, isTransparent)));
	const envoy = vm.spawn(
		[await ensureEnvoy(), '-c', path, '--disable-hot-restart', '--concurrency', '1', '--log-level', 'warning'],
		{uid: meshUid, stdio: 'ignore', isNetworkAdmin: isTransparent},
	);
	await until('Envoy to listen', async () => {
		const {stdout} = await vm.run('ss', ['-H', '-l', '-t', '-n']);
		return [':15001', ':15006'].every(
			port => stdout.includes(`0.0.0.0${port}`) && (!ipv6 || stdout.includes(`[::]${port}`)),
		);
	});
	return envoy;
}

function catcher(ipv6: boolean, isTransparent: boolean): unknown {
	const families = ipv6 ? (['ip', 'ip6'] as const) : (['ip'] as const);
	const any = (type: string, fields: object = {}) => ({'@type': `type.googleapis.com/envoy.${type}`, ...fields});
	const proxyTo = (cluster: string) => ({
		name: 'envoy.filters.network.tcp_proxy',
		typed_config: any('extensions.filters.network.tcp_proxy.v3.TcpProxy', {stat_prefix: cluster, cluster}),
	});
	const directions = families.flatMap(family => [
		{name: `outbound-${family}`, port: 15_001, family, source: undefined},
		{name: `inbound-${family}`, port: 15_006, family, source: family === 'ip' ? '127.0.0.6' : '::6'},
	]);
	return {
		static_resources: {
			listeners: directions.map(({name, port, family}) => ({
				name,
				address: {socket_address: {address: family === 'ip' ? '0.0.0.0' : '::', port_value: port}},
				...(isTransparent && name.startsWith('inbound') ? {transparent: true} : {}),
				listener_filters: [
					...(isTransparent && name.startsWith('inbound')
						? [
								{
									name: 'envoy.filters.listener.original_src',
									typed_config: any('extensions.filters.listener.original_src.v3.OriginalSrc', {mark: 1337}),
								},
							]
						: []),
					{
						name: 'envoy.filters.listener.original_dst',
						typed_config: any('extensions.filters.listener.original_dst.v3.OriginalDst'),
					},
				],
				filter_chains: [
					// As istiod has it: a connection to the listener's own port was not redirected, and would go round for ever.
					{filter_chain_match: {destination_port: port}, filters: [proxyTo('nowhere')]},
					{filters: [proxyTo(name)]},
				],
			})),
			clusters: [
				{name: 'nowhere', type: 'STATIC', load_assignment: {cluster_name: 'nowhere'}},
				...directions.map(({name, family, source}) => ({
					name,
					// What TPROXY hands over has kept its destination, which Envoy then does not take for an original one.
					...(isTransparent && source
						? {
								type: 'STATIC',
								load_assignment: {
									cluster_name: name,
									endpoints: [
										{
											lb_endpoints: [
												{endpoint: {address: {socket_address: {address: address.vm[family], port_value: 8080}}}},
											],
										},
									],
								},
							}
						: {type: 'ORIGINAL_DST', lb_policy: 'CLUSTER_PROVIDED'}),
					connect_timeout: '2s',
					...(source && !isTransparent
						? {upstream_bind_config: {source_address: {address: source, port_value: 0}}}
						: {}),
					transport_socket: {
						name: 'envoy.transport_sockets.upstream_proxy_protocol',
						typed_config: any('extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport', {
							config: {version: 'V1'},
							transport_socket: {
								name: 'envoy.transport_sockets.raw_buffer',
								typed_config: any('extensions.transport_sockets.raw_buffer.v3.RawBuffer'),
							},
						}),
					},
				})),
			],
		},
	};
}
