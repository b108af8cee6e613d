import {randomBytes} from 'node:crypto';
import type {Clock, Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {encodeName, isFailure, type as recordType, renderQuery} from './message.ts';
import {parseResolvConf, type ResolvConf} from './resolv-conf.ts';
import {labelOf, type ServerAddress, Upstream, type UpstreamState} from './upstream.ts';
import {type Look, watchFiles} from './watch-files.ts';

export interface UpstreamsDeps {
	readonly clock: Clock;
	readonly log: Logger;
	/** Asked instead of those of resolv.conf; empty = follow resolv.conf. */
	readonly configured: readonly ServerAddress[];
	readonly resolvConfPath: string;
	/** Where systemd-resolved lists the servers that it asks itself. */
	readonly resolvedConfPath: string;
	/** Never ask the stub of systemd-resolved: it asks us for names of the mesh. */
	readonly isStubAvoided: boolean;
	/** Where we listen: asking there would be asking ourselves. */
	readonly isOurs: (server: ServerAddress) => boolean;
	readonly onSearch: (search: readonly string[]) => void;
}

export interface UpstreamReport {
	readonly server: string;
	readonly state: UpstreamState;
	readonly latencyMs: number | undefined;
	readonly asked: number;
	readonly answered: number;
	readonly failed: number;
	/** Asked only when the others cannot be. */
	readonly isSpare: boolean;
}

export interface Upstreams extends Running {
	/** Those to ask, best first. */
	order(): readonly Upstream[];
	/** Whether questions go over TCP always. */
	readonly isTcpOnly: boolean;
	/** Whether a name that we are asked for is a probe of ours: then a server leads back to us. */
	noteProbe(key: string): boolean;
	report(): {
		readonly source: string;
		readonly problem: string | undefined;
		readonly servers: readonly UpstreamReport[];
	};
	all(): readonly Upstream[];
	/** Reads resolv.conf now. */
	refresh(): Promise<void>;
}

/** Names of our probes; .internal is for private use, so that no zone of the world is asked for much. */
const probeDomain = encodeName('onramp-probe.internal')!;
/** Whether a name may be one of a probe. */
export const isProbe = (key: string): boolean => key.endsWith(probeDomain);
const probeTimeoutMs = 2000;
/** Between probes of a server that is not asked otherwise; doubles up to the longest. */
const probeEveryMs = 2000;
const longestProbeMs = 30_000;
const tickMs = 250;
/** With nothing open. */
const idleTickMs = 2000;
/** The stubs of systemd-resolved. */
const stubs: ReadonlySet<string> = new Set(['127.0.0.53', '127.0.0.54']);

interface Entry {
	readonly upstream: Upstream;
	isSpare: boolean;
	/** A probe was answered, by the server or whom it asks, and did not come to us. */
	isProven: boolean;
	probeDelayMs: number;
	nextProbeMs: number;
}

/** Follows the servers that this machine asks for names, and knows which of them to ask. */
export function startUpstreams(deps: UpstreamsDeps): Upstreams {
	const {clock, log} = deps;
	const stopping = new AbortController();
	/** By label. */
	let entries = new Map<string, Entry>();
	let order: readonly Upstream[] = [];
	let isRotating = false;
	let isTcpOnly = false;
	let turn = 0;
	let problem: string | undefined;
	let source = deps.configured.length > 0 ? 'configuration' : deps.resolvConfPath;
	/** Names in lower case, as on the wire, that were sent in probes → whom to. */
	const probes = new Map<string, Upstream>();

	const reorder = () => {
		const usable = [...entries.values()].filter(({upstream}) => upstream.state !== 'loop');
		const rank = ({upstream, isSpare}: Entry) => (upstream.isGood ? 0 : 2) + (isSpare ? 1 : 0);
		const hasMain = usable.some(entry => !entry.isSpare && entry.upstream.isGood);
		// A spare one may know less (no split DNS), so it is not raced with one that answers.
		const chosen = hasMain ? usable.filter(({isSpare}) => !isSpare) : usable;
		order = chosen.toSorted((a, b) => rank(a) - rank(b)).map(({upstream}) => upstream);
	};

	const onStateChange = (entry: Entry) => {
		reorder();
		const {upstream} = entry;
		const fields = {server: upstream.label, state: upstream.state};
		if (upstream.state === 'loop') log.warn(fields, 'dns server asks us in turn and is not used');
		else if (upstream.state === 'silent') log.warn(fields, 'dns server does not answer');
		else log.debug(fields, 'dns server changed state');
		if (!upstream.isGood) {
			entry.probeDelayMs = probeEveryMs;
			entry.nextProbeMs = clock.monotonicMs() + entry.probeDelayMs;
		}
	};

	const use = (servers: readonly {server: ServerAddress; isSpare: boolean}[]) => {
		const next = new Map<string, Entry>();
		for (const {server, isSpare} of servers) {
			const label = labelOf(server);
			if (next.has(label) || deps.isOurs(server)) continue;
			const known = entries.get(label);
			if (known) {
				known.isSpare = isSpare;
				next.set(label, known);
				continue;
			}
			const entry: Entry = {
				upstream: new Upstream(server, clock, () => onStateChange(entry)),
				isSpare,
				isProven: false,
				probeDelayMs: probeEveryMs,
				// At once: a loop must be found before it is asked much.
				nextProbeMs: 0,
			};
			next.set(label, entry);
		}
		const gone = [...entries.values()].filter(entry => !next.has(entry.upstream.label));
		entries = next;
		reorder();
		for (const {upstream} of gone) upstream.close();
	};

	const probe = (entry: Entry) => {
		const {upstream} = entry;
		const name = `\x10${randomBytes(8).toString('hex')}${probeDomain}`;
		probes.set(name, upstream);
		entry.nextProbeMs = clock.monotonicMs() + entry.probeDelayMs;
		entry.probeDelayMs = Math.min(longestProbeMs, entry.probeDelayMs * 2);
		const wasLoop = upstream.state === 'loop';
		let cameBack = false;
		const stop = () => probes.delete(name);
		const message = renderQuery(0, name, recordType.txt);
		upstream.ask(message, message.length - 11, isTcpOnly, probeTimeoutMs, answer => {
			cameBack = !probes.has(name);
			stop();
			// A server that could ask nobody says so, and proves nothing.
			if (cameBack || !answer || isFailure(answer[3]! & 0x0f)) return;
			entry.isProven = true;
			if (wasLoop) upstream.clearLoop();
		});
	};

	const untilTick = (nowMs: number): number => {
		let waitMs = idleTickMs;
		for (const {upstream, isProven, nextProbeMs} of entries.values()) {
			if (!upstream.isIdle) return tickMs;
			if (!isProven || !upstream.isGood) waitMs = Math.min(waitMs, Math.max(tickMs, nextProbeMs - nowMs));
		}
		return waitMs;
	};

	const tick = async () => {
		for (;;) {
			const nowMs = clock.monotonicMs();
			for (const entry of entries.values()) {
				entry.upstream.tick(nowMs);
				if ((!entry.isProven || !entry.upstream.isGood) && nowMs >= entry.nextProbeMs) probe(entry);
			}
			await clock.sleep(untilTick(nowMs), stopping.signal);
		}
	};

	const apply = (looks: readonly Look[]) => {
		const [own, resolved] = looks;
		if (own?.kind === 'unreadable') {
			// What was known stays in use: it is likelier to be right than nothing.
			problem = `${deps.resolvConfPath} cannot be read: ${own.reason}`;
			log.warn({path: deps.resolvConfPath, reason: own.reason}, 'dns servers are not known anew');
			return;
		}
		problem = own?.kind === 'absent' ? `there is no ${deps.resolvConfPath}` : undefined;
		const conf = parseResolvConf(own?.kind === 'text' ? own.text : '');
		({isRotating, isTcpOnly} = conf);
		deps.onSearch(conf.search);
		if (deps.configured.length > 0) return;
		const chosen = chooseServers(conf, resolved?.kind === 'text' ? parseResolvConf(resolved.text) : undefined, deps);
		source = deps.resolvConfPath;
		use(chosen);
		log.info({servers: order.map(({label}) => label)}, 'dns servers in use');
	};

	use(deps.configured.map(server => ({server, isSpare: false})));
	const files = watchFiles([deps.resolvConfPath, deps.resolvedConfPath], apply);
	const finished = tick().catch((error: unknown) => {
		if (!stopping.signal.aborted) throw error;
	});

	return {
		finished,
		order: () => {
			if (!isRotating || order.length < 2) return order;
			turn = (turn + 1) % order.length;
			return [...order.slice(turn), ...order.slice(0, turn)];
		},
		get isTcpOnly() {
			return isTcpOnly;
		},
		noteProbe: key => {
			const upstream = probes.get(key);
			if (!upstream) return false;
			probes.delete(key);
			upstream.markLoop();
			return true;
		},
		report: () => ({
			source,
			problem: problem ?? (order.length === 0 ? 'no server can be asked for names outside of the mesh' : undefined),
			servers: [...entries.values()].map(({upstream, isSpare}) => ({
				server: upstream.label,
				state: upstream.state,
				latencyMs: upstream.latencyMs === undefined ? undefined : Math.round(upstream.latencyMs * 10) / 10,
				asked: upstream.asked,
				answered: upstream.answered,
				failed: upstream.failed,
				isSpare,
			})),
		}),
		all: () => [...entries.values()].map(({upstream}) => upstream),
		refresh: files.look,
		stop: async () => {
			stopping.abort();
			files.close();
			for (const {upstream} of entries.values()) upstream.close();
			entries.clear();
			order = [];
			await finished;
		},
	};
}

/**
 * The servers of resolv.conf. Behind the stub of systemd-resolved stand the servers it asks itself: they are spares, as
 * it alone knows which of them is right for a name (split DNS of a VPN, DNS over TLS); unless the stub would ask us.
 */
export function chooseServers(
	conf: ResolvConf,
	resolved: ResolvConf | undefined,
	{isStubAvoided}: {readonly isStubAvoided: boolean},
): {server: ServerAddress; isSpare: boolean}[] {
	const toServer = (address: string, isSpare: boolean) => ({server: {address, port: 53}, isSpare});
	const hasStub = conf.servers.some(address => stubs.has(address));
	const behind =
		hasStub || isStubAvoided ? (resolved?.servers ?? []).filter(address => !address.startsWith('127.')) : [];
	const isAvoided = isStubAvoided && behind.length > 0;
	return [
		...conf.servers.filter(address => !(isAvoided && stubs.has(address))).map(address => toServer(address, false)),
		...behind.map(address => toServer(address, !isAvoided)),
	];
}
