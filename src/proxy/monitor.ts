import {reasonOf} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import type {AdminClient, ServerInfo} from './admin.ts';

export type Verdict = {readonly isReady: true} | UnreadyVerdict;

export interface UnreadyVerdict {
	readonly isReady: false;
	readonly reason: string;
	readonly hint?: string | undefined;
	/** No waiting helps, only another Envoy. */
	readonly isSpent?: boolean;
}

export interface MonitorDeps {
	readonly admin: Pick<AdminClient, 'serverInfo' | 'stats' | 'get'>;
	readonly clock: Clock;
	/**
	 * Called with each answer, before the verdict. What it throws ends the watch.
	 * @param askedMs - monotonic time of the question
	 */
	onInfo(info: ServerInfo, askedMs: number): void;
	/** Called with each look that says something new. */
	onVerdict(verdict: Verdict): void;
	/** Given when something has happened that may have made it ready. */
	readonly nudge?: Nudge;
	/** Whether its end is heard of otherwise, so that one that serves need be looked at less often. */
	readonly isEndHeard?: boolean;
	/** Called after each look, for what is to be done every second or two. */
	onTick?(): void;
}

/** Has a watch look now. */
export class Nudge {
	#next = new AbortController();

	/** Aborts with the next nudge. */
	get signal(): AbortSignal {
		return this.#next.signal;
	}

	give(): void {
		this.#next.abort();
		this.#next = new AbortController();
	}
}

/** While Envoy starts, its readiness is noticed within this time, */
const startingPollMs = 20;
/** and within this one after a nudge, as what was taken is in use some milliseconds later. */
const nudgedPollMs = 3;
const nudgedForMs = 100;
/** After this long it waits for something, and is looked at less often. */
const quickForMs = 5000;
const waitingPollMs = 100;
const runningPollMs = 1000;
/** Each look is a request of 10 KB, and the most that the agent does while nothing happens. */
const heardPollMs = 2000;
/** How often a reason is worked out for an Envoy that is not ready. */
const explainMs = 1000;
/** How often one that serves is asked whether it still listens. */
const listensMs = 10_000;

const updates = {
	cds: 'cluster_manager.cds',
	lds: 'listener_manager.lds',
} as const;
const updatesFilter =
	'^(cluster_manager\\.cds|listener_manager\\.lds)\\.(update_success|update_rejected|init_fetch_timeout)$';
/** Counts the ends of what `/drain_listeners` has begun; a listener that the control plane takes away is not among them. */
const closings = 'listener_manager.listener_stopped';
const servesFilter = `${updatesFilter}|^${closings.replaceAll('.', '\\.')}$`;
const closed: Verdict = {
	isReady: false,
	reason: 'envoy has closed its listeners, as it was told to drain',
	isSpent: true,
};

/**
 * Watches one Envoy until the signal. It is ready when it is LIVE *and* has taken clusters and listeners without a
 * time-out: LIVE alone also follows when the control plane never answered, and goes on when its listeners are closed.
 * The answer is live, not sticky: an Envoy that hangs later closes the gate again.
 */
export async function monitorEnvoy(deps: MonitorDeps, signal: AbortSignal): Promise<void> {
	const {admin, clock, onInfo, onVerdict, onTick} = deps;
	const startedMs = clock.monotonicMs();
	let explainedMs = startedMs;
	let serves: Serves = 'not-yet';
	let servesAskedMs = Number.NEGATIVE_INFINITY;
	let wasReady = false;
	let nudgedMs = Number.NEGATIVE_INFINITY;
	while (!signal.aborted) {
		const askedMs = clock.monotonicMs();
		const info = await admin.serverInfo().catch((error: unknown) => reasonOf(error));
		if (signal.aborted) return;
		const state = typeof info === 'string' ? `no answer (${info})` : info.state;
		if (typeof info !== 'string') onInfo(info, askedMs);
		if (state === 'LIVE' && (serves === 'not-yet' || (serves === 'yes' && askedMs - servesAskedMs >= listensMs))) {
			// Once it has served, no answer says nothing new.
			serves = (await howServes(admin)) ?? serves;
			servesAskedMs = askedMs;
		}
		const nowMs = clock.monotonicMs();
		if (state === 'LIVE' && serves !== 'not-yet') {
			wasReady = true;
			onVerdict(serves === 'yes' ? {isReady: true} : closed);
		} else if (nowMs - explainedMs >= explainMs) {
			explainedMs = nowMs;
			const verdict = await explain(admin, state);
			if (signal.aborted) return;
			onVerdict(verdict);
		}
		onTick?.();
		if (wasReady) {
			await clock.sleep(deps.isEndHeard && state === 'LIVE' ? heardPollMs : runningPollMs, signal).catch(() => {}); // Aborted: the loop ends.
			continue;
		}
		const pollMs =
			nowMs - nudgedMs < nudgedForMs ? nudgedPollMs : nowMs - startedMs < quickForMs ? startingPollMs : waitingPollMs;
		await clock.sleep(pollMs, deps.nudge ? AbortSignal.any([signal, deps.nudge.signal]) : signal).catch(() => {
			nudgedMs = clock.monotonicMs(); // Or the signal, and the loop ends.
		});
	}
}

type Serves = 'not-yet' | 'yes' | 'no-more';

/** Undefined: it has not what it needs yet, or does not tell. */
async function howServes(admin: MonitorDeps['admin']): Promise<Serves | undefined> {
	try {
		const stats = await admin.stats(servesFilter);
		if (stats.get(closings)) return 'no-more';
		const isConfigured = Object.values(updates).every(
			name => (stats.get(`${name}.update_success`) ?? 0) > 0 && !stats.get(`${name}.init_fetch_timeout`),
		);
		return isConfigured ? 'yes' : undefined;
	} catch {
		return undefined; // Looked at again with the next poll.
	}
}

/** Why Envoy is not ready, as far as it can tell. */
async function explain(admin: MonitorDeps['admin'], state: string): Promise<Verdict> {
	const no = (reason: string, hint?: string): Verdict => ({isReady: false, reason, hint});
	if (state === 'DRAINING') return no('envoy drains');
	if (state.startsWith('no answer')) return no(`envoy's admin socket: ${state}`);
	try {
		const stats = await admin.stats(`${updatesFilter}|^cluster_manager\\.warming_clusters$`);
		for (const [type, name] of Object.entries(updates)) {
			if ((stats.get(`${name}.update_success`) ?? 0) > 0) continue;
			if ((stats.get(`${name}.update_rejected`) ?? 0) > 0) {
				return no(
					`envoy rejected the ${type.toUpperCase()} configuration`,
					"see envoy's log for what is wrong with it",
				);
			}
			const warming = stats.get('cluster_manager.warming_clusters') ?? 0;
			if (type === 'lds' && warming > 0) return no(`envoy waits for ${await describeWarming(admin)}`);
			return no(`envoy is ${state}: waits for its first ${type.toUpperCase()} configuration`);
		}
		const waitingFor = parseInitDump(await admin.get('/init_dump'));
		return no(`envoy is ${state}${waitingFor.length > 0 ? `: waits for ${waitingFor.slice(0, 3).join('; ')}` : ''}`);
	} catch (error) {
		return no(`envoy is ${state}`, reasonOf(error));
	}
}

const warmingPath = '/config_dump?resource=dynamic_warming_clusters&mask=cluster.name,cluster.type';

/** Those that DNS does not answer for hold up all others: Envoy asks for endpoints when these are there. */
async function describeWarming(admin: MonitorDeps['admin']): Promise<string> {
	const clusters = parseWarming(await admin.get(warmingPath));
	const byDns = clusters.filter(({type}) => type.endsWith('_DNS'));
	// They came while we asked.
	if (clusters.length === 0) return 'its listeners';
	const [what, names] = byDns.length > 0 ? ['DNS to answer for the hosts', byDns] : ['the endpoints', clusters];
	const shown = names.slice(0, 3).map(({name}) => name);
	return `${what} of ${names.length === 1 ? 'a cluster' : `${names.length} clusters`}: ${shown.join(', ')}${names.length > 3 ? ', …' : ''}`;
}

/** Clusters that warm: `{configs: [{cluster: {name, type}}]}`; a type that is the default is left out. */
export function parseWarming(text: string): {readonly name: string; readonly type: string}[] {
	const dump = JSON.parse(text) as {configs?: {cluster?: {name?: string; type?: string}}[]};
	return (dump.configs ?? []).flatMap(({cluster: {name, type = 'STATIC'} = {}}) =>
		name === undefined ? [] : [{name, type}],
	);
}

/** Names of what holds up the start: `{unready_targets_dumps: [{name, target_names: []}]}` → `NAME: TARGET, …`. */
export function parseInitDump(text: string): string[] {
	const dump = JSON.parse(text) as {unready_targets_dumps?: {name?: string; target_names?: string[]}[]};
	return (dump.unready_targets_dumps ?? [])
		.filter(entry => (entry.target_names ?? []).length > 0)
		.map(({name = '', target_names = []}) => `${name}: ${target_names.join(', ')}`);
}
