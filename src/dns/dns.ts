import {join} from 'node:path';
import type {DnsConfig, WorkloadConfig} from '../config/types.ts';
import {AgentError, reasonOf} from '../errors.ts';
import type {Clock, Gate, Metrics, Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {Answerer} from './answerer.ts';
import {Forwarder} from './forwarder.ts';
import {type ListenerState, Listeners} from './listeners.ts';
import {type Lookup, lookUp} from './lookup.ts';
import {decodeName, encodeName, rcode} from './message.ts';
import {largestTable, type NameTable, parseNameTable} from './name-table.ts';
import {replyUnreadable} from './replies.ts';
import {type Resolved, type Run, routingDomains, startResolved} from './resolved.ts';
import {loadTable, TableSaver} from './saved-table.ts';
import {renderAddress} from './server-address.ts';
import {Tally} from './tally.ts';
import {isProbe, startUpstreams, type UpstreamReport, type Upstreams} from './upstreams.ts';
import {ZoneBuilder} from './zone-builder.ts';

export interface DnsDeps {
	readonly config: DnsConfig;
	readonly workload: Pick<WorkloadConfig, 'namespace' | 'domain'>;
	readonly clock: Clock;
	/** In [0, 1). */
	readonly random: () => number;
	readonly metrics: Metrics;
	readonly log: Logger;
	readonly gate: Gate;
	/** Runs programs, with mode `resolved`. */
	readonly run?: Run;
}

export interface DnsStatus {
	readonly mode: DnsConfig['mode'];
	readonly listeners: readonly string[];
	readonly names: number;
	/** Where the table comes from. */
	readonly table: 'none' | 'loading' | 'saved' | 'control plane';
	/** ISO 8601. */
	readonly tableReceivedAt: string | undefined;
	readonly meshDomains: readonly string[];
	/** Domains for which systemd-resolved asks us, with mode `resolved`. */
	readonly routedDomains: number | undefined;
	readonly searchDomains: readonly string[];
	readonly upstreamsFrom: string;
	readonly upstreams: readonly UpstreamReport[];
	readonly inFlight: number;
	readonly connections: number;
	readonly queries: Readonly<Record<string, number>>;
	readonly warnings: readonly string[];
}

export interface Dns extends Running {
	/** Where it listens, with the ports in use. */
	readonly listeners: readonly ListenerState[];
	/**
	 * Replaces the names of the mesh, and saves them.
	 * @param table - istio.networking.nds.v1.NameTable, encoded
	 * @throws WireError for what cannot be read; the table in use stays
	 */
	setNameTable(table: Buffer): void;
	status(): DnsStatus;
	/**
	 * Answers as a client is answered, and says who did and why.
	 * @param question - {@link Question}, from whoever asks the control socket
	 * @throws AgentError `dns.name_invalid`
	 */
	lookup(question: unknown): Promise<Lookup>;
}

/** What comes before the first look at resolv.conf and at the saved table waits for them; they take milliseconds. */
const mostHeld = 1000;
/** A disk that does not answer must not keep foreign names from being answered. */
const holdMs = 500;

/**
 * Where systemd-resolved asks us, besides `dns.addresses`. Before its version 250 it sends whatever is for the server of a
 * link out by that link, and only an address of the link's own leads back to us.
 */
const addressOfLink = '127.0.15.53';

/** @throws nothing for what may get better: what cannot be listened on closes the gate, and is tried again */
export async function startDns(deps: DnsDeps): Promise<Dns> {
	const {config, clock, log, gate, metrics, random} = deps;
	const clusterDomain = clusterDomainOf(deps.workload);
	const meshDomains = config.meshDomains ?? [clusterDomain];
	const tally = new Tally(metrics);
	const answerer = new Answerer(
		{ttlSeconds: config.ttlSeconds, meshDomains: meshDomains.map(encodeName).filter(name => name !== undefined)},
		random,
		tally,
	);
	const addresses = [...config.addresses, ...(config.mode === 'resolved' ? [addressOfLink] : [])];
	const tablePath = join(config.stateDir, 'names');
	let search: readonly string[] = [];
	let table: DnsStatus['table'] = 'loading';
	let receivedAt: Date | undefined;
	let tableProblem: string | undefined;

	const upstreams = startUpstreams({
		clock,
		log,
		configured: config.upstreams,
		resolvConfPath: config.resolvConfPath,
		resolvedConfPath: config.resolvedConfPath,
		isStubAvoided: config.mode === 'resolved',
		isOurs: ({address, port}) => addresses.includes(address) && port === config.port,
		onSearch: domains => {
			search = domains;
			answerer.setSearch(domains);
		},
	});
	const forwarder = new Forwarder({
		clock,
		tally,
		order: upstreams.order,
		settings: {timeoutMs: config.timeoutMs, mostInFlight: config.mostInFlight},
	});

	const ask = (message: Buffer, isTcp: boolean, largest: number | undefined, respond: (reply: Buffer) => void) => {
		const decided = answerer.answer(message, largest);
		if (decided === undefined || Buffer.isBuffer(decided)) return decided;
		if (isProbe(decided.key) && upstreams.noteProbe(decided.key)) return replyUnreadable(message, rcode.refused);
		forwarder.forward(decided, isTcp || upstreams.isTcpOnly, largest ?? decided.udpSize, respond);
		return undefined;
	};

	/** Questions that came before we could tell what is whose. */
	let held: (() => void)[] | undefined = [];
	const listeners = new Listeners({
		addresses,
		port: config.port,
		clock,
		log,
		ask: (message, isTcp, largest, respond) => {
			if (!held) return ask(message, isTcp, largest, respond);
			if (held.length < mostHeld)
				held.push(() => {
					const reply = ask(message, isTcp, largest, respond);
					if (reply) respond(reply);
				});
			return undefined;
		},
		onChange: () => updateGate(),
	});

	const updateGate = () => {
		const bad = listeners.states.find(({state}) => state === 'taken' || state === 'failed');
		const isHeard = listeners.states.some(({state}) => state === 'listening');
		if (bad)
			gate.close(
				`${renderAddress(bad.address, bad.port)}: ${bad.reason}`,
				`see who does with: ss -lunp 'sport = :${bad.port}'; end it, or set dns.port`,
			);
		else if (isHeard && resolved?.problem) gate.close(resolved.problem.message, resolved.problem.hint);
		else if (!isHeard) gate.close('no address to listen on', 'set dns.addresses to addresses of this machine');
		else if (answerer.zone) gate.open(`${answerer.zone.hosts} names`);
		else if (table === 'none') gate.close('waiting for the name table of the control plane');
		else gate.close('reading the saved name table');
	};

	let resolved: Resolved | undefined;
	const route = () => resolved?.setDomains(routingDomains(meshDomains, answerer.zone?.fullNames ?? []));
	let onZone = () => {};
	const builder = new ZoneBuilder(
		{namespace: deps.workload.namespace, clusterDomain, ttlSeconds: config.ttlSeconds},
		zone => {
			answerer.setZone(zone);
			route();
			updateGate();
			onZone();
		},
	);

	const use = (names: NameTable, from: 'saved' | 'control plane', at: Date) => {
		table = from;
		receivedAt = at;
		builder.build(names);
	};

	const load = async () => {
		try {
			const saved = await loadTable(tablePath);
			// The control plane may have been faster.
			if (saved && table === 'loading') {
				const built = new Promise<void>(resolve => {
					onZone = resolve;
				});
				use(parseNameTable(saved.table), 'saved', saved.receivedAt);
				await built;
			}
		} catch (error) {
			tableProblem = `saved name table is not used: ${reasonOf(error)}`;
			log.warn({err: error, path: tablePath}, 'saved name table is not used');
		}
		if (table === 'loading') table = 'none';
		updateGate();
	};

	const stopping = new AbortController();
	const saver = new TableSaver({path: tablePath, clock, log});

	const release = () => {
		const waiting = held ?? [];
		held = undefined;
		for (const answer of waiting) answer();
	};
	const timeout = clock.sleep(holdMs, stopping.signal).catch(() => {}); // stopped, or no longer needed
	const known = Promise.race([Promise.all([load(), upstreams.refresh()]), timeout]);
	void known.then(release, release);
	await listeners.start();
	const heard = listeners.states
		.filter(({state}) => state === 'listening')
		.toSorted((one, another) => Number(another.address === addressOfLink) - Number(one.address === addressOfLink))[0];
	if (config.mode === 'resolved' && heard) {
		const server = renderAddress(heard.address, heard.port);
		resolved = startResolved({link: config.link, server, clock, log, run: deps.run, onChange: updateGate});
		route();
	}
	updateGate();
	metrics.gaugeFrom('dns_names', 'Host names in the name table', () => answerer.zone?.hosts);
	metrics.gaugeFrom('dns_in_flight', 'Questions that other servers have been asked', () => forwarder.inFlight);
	countUpstreams(metrics, upstreams.all);
	log.info(
		{listeners: listeners.states.map(({address, port, state}) => `${renderAddress(address, port)} ${state}`)},
		'dns server started',
	);

	return {
		finished: upstreams.finished,
		get listeners() {
			return listeners.states;
		},
		setNameTable: body => {
			if (body.length > largestTable)
				throw new AgentError(
					'dns.table_too_large',
					`take name table: ${body.length} bytes are more than ${largestTable}`,
				);
			const at = clock.now();
			use(parseNameTable(body), 'control plane', at);
			tableProblem = undefined;
			saver.save({table: body, receivedAt: at});
		},
		status: () => {
			const {source, problem, servers} = upstreams.report();
			return {
				mode: config.mode,
				listeners: listeners.states.map(({address, port, state, reason}) =>
					[
						renderAddress(address, port),
						...(state === 'listening' ? [] : [state]),
						...(reason ? [`(${reason})`] : []),
					].join(' '),
				),
				names: answerer.zone?.hosts ?? 0,
				table,
				tableReceivedAt: receivedAt?.toISOString(),
				meshDomains,
				routedDomains: resolved?.domains.length,
				searchDomains: search.map(decodeName),
				upstreamsFrom: source,
				upstreams: servers,
				inFlight: forwarder.inFlight,
				connections: listeners.connections,
				queries: tally.report(),
				warnings: [tableProblem, saver.problem, problem, resolved?.problem?.message, leftOf(resolved)].filter(
					warning => warning !== undefined,
				),
			};
		},
		lookup: async question => {
			await known;
			return lookUp(question, {answerer, upstreams, clock});
		},
		stop: async () => {
			stopping.abort();
			builder.stop();
			// While we still answer.
			await resolved?.stop();
			await listeners.stop();
			forwarder.stop();
			await upstreams.stop();
			await saver.stop();
		},
	};
}

/** `svc.cluster.local` of `NAMESPACE.svc.cluster.local`. */
function clusterDomainOf({namespace, domain}: DnsDeps['workload']): string {
	return domain.startsWith(`${namespace}.`) ? domain.slice(namespace.length + 1) : domain;
}

function countUpstreams(metrics: Metrics, all: Upstreams['all']): void {
	const rows = (read: (upstream: ReturnType<Upstreams['all']>[number]) => number) => () =>
		all().map(upstream => [{server: upstream.label}, read(upstream)] as const);
	metrics.counterFrom(
		'dns_upstream_requests_total',
		'Questions sent to other servers',
		rows(({asked}) => asked),
	);
	metrics.counterFrom(
		'dns_upstream_failures_total',
		'Questions that other servers left without an answer',
		rows(({failed}) => failed),
	);
	metrics.counterFrom(
		'dns_upstream_answer_seconds_total',
		'Time that answers of other servers took',
		rows(({latencySumMs}) => latencySumMs / 1000),
	);
	metrics.counterFrom(
		'dns_upstream_answers_total',
		'Answers of other servers',
		rows(({answered}) => answered),
	);
}

const leftOf = (resolved: Resolved | undefined): string | undefined =>
	resolved && resolved.left > 0
		? `systemd-resolved takes no more than ${resolved.domains.length} domains: ${resolved.left} host names are not asked of the agent (set dns.mesh-domains to domains that hold them)`
		: undefined;
