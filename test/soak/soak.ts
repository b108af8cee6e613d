// Short connections without end while agents and Envoys crash, restart, are upgraded and replaced; what leaves the VM
// without Envoy is counted on the wire. test/soak/README.md tells how.
import {createInterface} from 'node:readline';
import {fileURLToPath} from 'node:url';
import type {ExecutionContext} from 'ava';
import {sendCommand} from '../../src/status/index.ts';
import {CapturedVm, hostOf, idOf, startControlPlane} from '../support/captured-mesh.ts';
import {address, addVm, appUid, makeWorld, meshUid, type Namespace, secondWire, type World} from '../support/netns.ts';
import {seededRandom} from '../support/seeded-random.ts';
import type {TrafficPlan, TrafficTally} from './traffic.ts';

export interface SoakOptions {
	readonly t: Pick<ExecutionContext, 'teardown'>;
	readonly seed: number;
	/** Goes on until so many were answered. */
	readonly connections: number;
	readonly perSecond: number;
	/** Between two of the things that happen. */
	readonly everyMs: number;
	/** What happens, instead of what the seed decides. */
	readonly events?: readonly EventName[];
	/** Told at each event. */
	readonly tell?: (line: string) => void;
}

export interface SoakReport {
	readonly seconds: number;
	readonly outbound: TrafficTally;
	/** Plaintext from outside to the application of a VM that only takes mutual TLS. */
	readonly intruder: TrafficTally;
	/** First packets of TCP on the wire, as sent by Envoy's user. */
	readonly ofEnvoy: number;
	/** The same, sent by anybody else: what must not be. */
	readonly escaped: number;
	/** Some of these: source, port, destination, port. */
	readonly who: readonly string[];
	/** Packets to addresses of the mesh, which have no place on a wire. */
	readonly ofMesh: number;
	/** Event → how often. */
	readonly events: Readonly<Record<string, number>>;
	/** Empty when all is as it must be. */
	readonly problems: readonly string[];
}

const ports = [9000, 9001, 9002, 9003, 9004, 9005, 9006, 9007];
const vips = {a: '240.240.0.11', b: '240.240.0.12'} as const;

const eventNames = [
	'agent killed',
	'envoy killed',
	'both killed',
	'upgrade',
	'upgrade with other rules',
	'envoy replaced',
	"the other side's envoy killed",
	"the other side's agent killed",
] as const;
export type EventName = (typeof eventNames)[number];

export async function soak(options: SoakOptions): Promise<SoakReport> {
	const {t, seed, connections, everyMs, tell = () => {}} = options;
	const world = await makeWorld(t);
	const second = await addVm(t, world);
	const control = await startControlPlane(world, {a: {vip: vips.a}, b: {vip: vips.b}});
	const vm = (group: 'a' | 'b', where: Namespace, at?: string) =>
		CapturedVm.create(world, control, {
			...{group, vm: where, isDnsCaptured: false},
			...(at === undefined ? {} : {at}),
			flags: ['--capture', '--proxy-on-stop', 'leave'],
		});
	const [a, b] = [await vm('a', world.vm), await vm('b', second, secondWire.vm)];
	const before = [await world.dump(), await second.must('nft', ['list', 'ruleset'])];
	for (const each of [a, b]) each.start();
	for (const each of [a, b]) await each.untilReady();
	await a.untilAnswers(`http://${vips.b}/`);
	const wire = await watchWire(world);

	await serveOutside(world);
	// Few ports, so that each comes round again within seconds, for the application and for Envoy.
	for (const each of [world.vm, world.far])
		await each.must('sysctl', ['-q', '-w', 'net.ipv4.ip_local_port_range=20000 24095']);
	const outside = {hosts: [address.far.ip, address.other.ip, address.far.ip6, address.other.ip6], ports};
	const mesh = {share: 0.25, host: hostOf('b'), address: vips.b, caller: idOf('a')};
	const outbound = startTraffic(world.vm, appUid, {seed, atOnce: 48, perSecond: options.perSecond, outside, mesh});
	const intruder = startTraffic(world.far, 0, {
		...{seed, atOnce: 4, perSecond: Math.min(50, options.perSecond / 10), mesh: {...mesh, share: 0}, isHttp: true},
		outside: {hosts: [address.vm.ip, secondWire.vm], ports: [8080]},
	});

	const happened: Record<string, number> = {};
	const random = seededRandom(seed);
	const startedMs = performance.now();
	const script = [...(options.events ?? [])];
	while (outbound.tally().answered < connections || script.length > 0) {
		await waitMs(everyMs * (0.5 + random()));
		const event = script.shift() ?? eventNames[Math.floor(random() * eventNames.length)]!;
		happened[event] = (happened[event] ?? 0) + 1;
		await happen(event, a, b, random);
		const {answered, failed} = outbound.tally();
		const {escaped} = await wire();
		const seconds = ((performance.now() - startedMs) / 1000).toFixed(0);
		tell(`${seconds} s: ${event}; ${answered} answered, ${JSON.stringify(failed)}, ${escaped} escaped`);
	}
	await Promise.all([a.untilReady(), b.untilReady()]);
	const seconds = (performance.now() - startedMs) / 1000;
	const tallies = {outbound: await outbound.stop(), intruder: await intruder.stop()};
	const counts = await wire();
	for (const each of [a, b]) {
		await each.stop();
		await each.onramp('capture', 'remove', '--all');
	}
	await a.app.ask(address.far.ip, ports[0]!);
	const isBlind = (await wire()).escaped === counts.escaped;
	await world.vm.must('nft', ['delete', 'table', 'inet', 'soak']);
	const after = [await world.dump(), await second.must('nft', ['list', 'ruleset'])];
	const seen = {seconds, ...tallies, ...counts, events: happened};
	return {...seen, problems: problemsOf(seen, isBlind, JSON.stringify(after) === JSON.stringify(before))};
}

function problemsOf(seen: Omit<SoakReport, 'problems'>, isBlind: boolean, isClean: boolean): string[] {
	const {outbound, intruder, ofEnvoy, escaped, ofMesh, who} = seen;
	return [
		escaped > 0 && `${escaped} connections left the VM without Envoy: ${who.join(', ')}`,
		ofMesh > 0 && `${ofMesh} packets to addresses of the mesh were on the wire`,
		outbound.strange > 0 && `${outbound.strange} requests came to the other side under no name or a wrong one`,
		intruder.answered > 0 && `${intruder.answered} connections in plaintext reached an application`,
		intruder.opened === 0 && 'nobody tried to come in',
		ofEnvoy === 0 && 'nothing was seen on the wire',
		isBlind && 'a connection past Envoy, made on purpose at the end, was not counted',
		!isClean && 'rules are left after remove',
	].filter(each => each !== false);
}

export function renderSoak(report: SoakReport): string {
	const {seconds, outbound, intruder, ofEnvoy, escaped, ofMesh, events, problems} = report;
	return [
		`soak: ${outbound.answered} connections answered in ${seconds.toFixed(0)} s, ${outbound.broken} broken off on purpose, ` +
			`failed ${JSON.stringify(outbound.failed)}`,
		`  on the wire: ${ofEnvoy} of Envoy, ${escaped} of anybody else, ${ofMesh} packets to the mesh`,
		`  from outside in plaintext: ${intruder.opened} tried, ${intruder.answered} answered`,
		`  events: ${Object.entries(events)
			.map(([event, times]) => `${times} x ${event}`)
			.join(', ')}`,
		...(problems.length === 0 ? ['  no problem'] : problems.map(problem => `  problem: ${problem}`)),
	].join('\n');
}

async function happen(event: EventName, a: CapturedVm, b: CapturedVm, random: () => number): Promise<void> {
	const kill = async (vm: CapturedVm, what: {readonly agent?: boolean; readonly envoy?: boolean}) => {
		const {pid} = (await vm.until('has an Envoy', ({parts}) => pidIn(parts) !== undefined)).parts['proxy'] as {
			pid: number;
		};
		if (what.agent) {
			vm.signal('SIGKILL');
			await vm.exit;
		}
		if (what.envoy) process.kill(pid, 'SIGKILL');
		// Long enough for connections to meet a VM without.
		await waitMs(200 + random() * 800);
		if (what.agent) vm.start();
		await vm.untilReady();
	};
	const upgrade = async (flags: readonly string[]) => {
		await a.untilReady();
		await a.stop();
		a.start({flags});
		await a.untilReady();
	};
	if (event === 'agent killed') await kill(a, {agent: true});
	else if (event === 'envoy killed') await kill(a, {envoy: true});
	else if (event === 'both killed') await kill(a, {agent: true, envoy: true});
	else if (event === "the other side's envoy killed") await kill(b, {envoy: true});
	else if (event === "the other side's agent killed") await kill(b, {agent: true});
	else if (event === 'upgrade') await upgrade([]);
	else if (event === 'upgrade with other rules')
		await upgrade(['--capture-outbound-exclude-ports', String(10_000 + Math.floor(random() * 1000))]);
	else {
		await a.untilReady();
		await sendCommand(a.socket, 'proxy-replace', undefined, 60_000);
	}
}

const pidIn = (parts: Readonly<Record<string, unknown>>) => (parts['proxy'] as {pid?: number} | undefined)?.pid;

/**
 * What Envoy's user sends is marked in the VM by its DSCP, behind all rules; on the far end of the wire who has no mark
 * is somebody else. Only first packets: those of a closed socket have no owner any more.
 */
async function watchWire({
	vm,
	far,
}: World): Promise<() => Promise<Pick<SoakReport, 'ofEnvoy' | 'escaped' | 'ofMesh' | 'who'>>> {
	await vm.must(
		'nft',
		['-f', '-'],
		`table inet soak { chain out { type filter hook output priority 300;
meta skuid ${meshUid} ip dscp set cs1
meta skuid ${meshUid} ip6 dscp set cs1
}
}
`,
	);
	await far.must(
		'nft',
		['-f', '-'],
		`table inet wire {
set who4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; size 64; flags dynamic; }
set who6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; size 64; flags dynamic; }
chain in { type filter hook prerouting priority -300;
iifname != vm0 return
meta l4proto != tcp return
ip daddr 240.240.0.0/16 counter comment "mesh"
tcp flags & (syn | ack) != syn return
ip dscp cs1 counter return comment "envoy"
ip6 dscp cs1 counter return comment "envoy"
counter comment "escaped"
add @who4 { ip saddr . tcp sport . ip daddr . tcp dport }
add @who6 { ip6 saddr . tcp sport . ip6 daddr . tcp dport }
}
}
`,
	);
	return async () => {
		const text = await far.must('nft', ['list', 'table', 'inet', 'wire']);
		const count = (comment: string) =>
			[...text.matchAll(/counter packets (\d+) bytes \d+ (?:return )?comment "(\w+)"/g)]
				.filter(each => each[2] === comment)
				.reduce((sum, each) => sum + Number(each[1]), 0);
		const who = [...text.matchAll(/elements = \{([^}]*)\}/g)].flatMap(each =>
			each[1]!.split(',').map(one => one.trim()),
		);
		return {who, ofEnvoy: count('envoy'), escaped: count('escaped'), ofMesh: count('mesh')};
	};
}

async function serveOutside({far}: World): Promise<void> {
	const script = fileURLToPath(new URL('outside.ts', import.meta.url));
	const child = far.spawn([process.execPath, script, ports.join(',')]);
	await new Promise<void>(resolve => createInterface({input: child.stdout!}).once('line', () => resolve()));
}

interface Traffic {
	tally(): TrafficTally;
	stop(): Promise<TrafficTally>;
}

function startTraffic(where: Namespace, uid: number, plan: TrafficPlan): Traffic {
	const script = fileURLToPath(new URL('traffic.ts', import.meta.url));
	const child = where.spawn([process.execPath, script, JSON.stringify(plan)], {uid});
	let tally: TrafficTally = {opened: 0, answered: 0, broken: 0, strange: 0, failed: {}};
	const lines = createInterface({input: child.stdout!});
	lines.on('line', line => {
		tally = JSON.parse(line) as TrafficTally;
	});
	return {
		tally: () => tally,
		stop: async () => {
			const closed = new Promise<void>(resolve => lines.once('close', () => resolve()));
			child.stdin!.end();
			await closed;
			return tally;
		},
	};
}

const waitMs = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms));
