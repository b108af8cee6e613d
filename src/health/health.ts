import type {HealthConfig} from '../config/types.ts';
import {AgentError, reasonOf} from '../errors.ts';
import {type Clock, type GateState, type Metrics, never, type Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import type {HealthReport} from '../relay/index.ts';
import type {Prober, ProbeStatus} from './prober.ts';
import {decide, type Finding} from './verdict.ts';
import type {Word, WordKeeper} from './word.ts';

export interface HealthStatus {
	readonly state: Finding['state'];
	readonly reason: string | undefined;
	/** Wall-clock time of the last change of `state`. */
	readonly since: Date;
	/** Whether the control plane is told. */
	readonly reported: boolean;
	/** What it was told last, and when that changed. */
	readonly told:
		| {readonly state: 'healthy' | 'unhealthy'; readonly reason: string | undefined; readonly at: Date}
		| undefined;
	readonly said: (Word & {readonly isKept: boolean}) | undefined;
	readonly probes: readonly ProbeStatus[];
}

/** What `onramp ready` and `onramp unready` are answered. */
export interface Answer {
	readonly state: Finding['state'];
	readonly reason: string | undefined;
	/** How the mesh learns of it. */
	readonly by: 'report' | 'registration' | 'nothing';
	/** False: a restart of the agent forgets it. */
	readonly isKept: boolean;
	readonly problem: string | undefined;
}

export interface Health extends Running {
	status(): HealthStatus;
	/** What the control plane was told last, and for how long that has been so. */
	told(): {readonly isHealthy: boolean; readonly reason: string | undefined; readonly forMs: number} | undefined;
	/** Why we are to stay out of the mesh's load balancing; undefined = we are not. */
	withheld(): string | undefined;
	say(said: Word['said'], input: unknown): Promise<Answer>;
	/** Tells the control plane once more what it was told last. */
	tellAgain(): void;
	/** Says that we go, and waits until the word has spread. Nothing is probed or said after it. */
	leave(): Promise<void>;
}

/** `isComing`: closed for now, and nothing is known against it: rules that are on trial, or wait for the agent. */
export type TrafficGate = GateState & {readonly isComing?: boolean};

export interface HealthDeps {
	readonly config: HealthConfig;
	/** Open while what comes to this machine reaches Envoy: it is there, and so are the rules that lead to it. */
	readonly trafficGate: () => TrafficGate;
	/** Calls back when that may have changed. Returns how to stop it. */
	readonly onGateChange: (listener: () => void) => () => void;
	/** To the control plane; repeated by it on each new stream. */
	readonly report: (report: HealthReport) => void;
	/** {@link Health.withheld} has changed: the mesh is to be told by a stream that registers, or does not. */
	readonly onWithheld: () => void;
	/** The state or its reason has changed. */
	readonly onChange: () => void;
	/** Calls back when a stream to the control plane is taken. Returns how to stop it. */
	readonly onConnected: (listener: () => void) => () => void;
	/** Whether this agent has a WorkloadEntry at all. */
	readonly hasEntry: boolean;
	/** Resolves when the mesh sends nothing here any more, as far as can be seen, or nothing can be seen. */
	readonly untilLeft: (signal: AbortSignal) => Promise<void>;
	/** Called before we say that we go: the control plane may take away at once what requests under way are served with. */
	readonly onLeaving: () => void;
	/** False: the next agent goes on with the same Envoy, and peers need not notice. */
	readonly isEnded: boolean;
	readonly keeper: WordKeeper;
	readonly startProbers: (onResult: (name: string, isPassing: boolean) => void) => Promise<readonly Prober[]>;
	readonly clock: Clock;
	/** In [0, 1). */
	readonly random: () => number;
	readonly metrics: Metrics;
	readonly log: Logger;
}

/** An Envoy that is started anew is back before this; a VM must not leave and return for that. */
const proxyPatienceMs = 3000;
/** How long a stop waits for the word to spread; istiod collects changes for 100 ms and pushes. */
const farewellMs = 2000;
/**
 * istiod drops, without a word, a report that comes before its own copy of the entry says whose it is. The one that
 * follows each new stream may, so it is said again when that must be over.
 */
const settledMs = 1500;
const longestReason = 200;

/** Asks the application how it is, and tells the control plane each change once, and what is so again now and then. */
export async function startHealth(deps: HealthDeps): Promise<Health> {
	const {config, clock, random, metrics, log} = deps;
	const stopping = new AbortController();
	const {signal} = stopping;
	let word = await deps.keeper.load();
	let isKept = word !== undefined;
	if (word?.said === 'unready') log.warn({reason: word.reason, at: word.at}, 'in maintenance, until "onramp ready"');

	let finding: Finding = {state: 'unknown', reason: 'not looked at yet'};
	let since = clock.now();
	let told: HealthStatus['told'];
	let toldMs = 0;
	let wasWithheld: string | undefined;
	let proxyDownMs: number | undefined;
	let patience = new AbortController();
	let hurry = new AbortController();
	let probers: readonly Prober[] = [];

	const results = metrics.counter('health_probes_total', 'Probes of the application, by name and result.');
	const changes = metrics.counter('health_changes_total', 'Changes of health told to the control plane.');
	metrics.gaugeFrom('health_healthy', '1 while healthy, 0 while unhealthy.', () =>
		finding.state === 'unknown' ? undefined : Number(finding.state === 'healthy'),
	);

	const proxyState = (): Parameters<typeof decide>[0]['proxy'] => {
		const {name, isOpen, isComing, reason} = deps.trafficGate();
		if (isOpen) return {state: 'ready'};
		const isLong = proxyDownMs !== undefined && clock.monotonicMs() - proxyDownMs >= proxyPatienceMs;
		if (isLong && isComing !== true)
			return {state: 'unready', reason: name === 'capture' ? reason : `Envoy is not ready: ${reason}`};
		// What was known while it was up goes on to be so for a moment.
		return {state: told?.state === 'healthy' ? 'ready' : 'unknown'};
	};

	const withheld = () => (word?.said === 'unready' && !config.isReported && deps.hasEntry ? finding : undefined);

	const look = (): void => {
		if (signal.aborted) return;
		const next = decide({
			mode: config.mode,
			word,
			proxy: proxyState(),
			probes: probers.map(prober => prober.status()),
		});
		const isNews = next.state !== finding.state || reasonOfFinding(next) !== reasonOfFinding(finding);
		if (next.state !== finding.state) {
			since = clock.now();
			if (next.state === 'unhealthy') log.warn({reason: next.reason}, 'unhealthy');
			else if (next.state === 'healthy') log.info('healthy');
		}
		finding = next;
		tell(next);
		const isWithheld = reasonOfFinding(withheld());
		if (isWithheld !== wasWithheld) {
			wasWithheld = isWithheld;
			deps.onWithheld();
		}
		if (isNews) deps.onChange();
	};

	const tell = (next: Finding): void => {
		if (!config.isReported || next.state === 'unknown' || next.state === told?.state) return;
		const reason = reasonOfFinding(next);
		told = {state: next.state, reason, at: clock.now()};
		toldMs = clock.monotonicMs();
		changes({state: next.state});
		deps.report({isHealthy: next.state === 'healthy', message: reason ?? ''});
	};

	const onGate = (): void => {
		if (deps.trafficGate().isOpen) {
			proxyDownMs = undefined;
			patience.abort();
		} else if (proxyDownMs === undefined) {
			proxyDownMs = clock.monotonicMs();
			patience = new AbortController();
			clock.sleep(proxyPatienceMs, AbortSignal.any([patience.signal, signal])).then(look, () => {
				// It is back, or we stop.
			});
		}
		look();
	};

	const tellAgain = (): void => {
		if (!told) return;
		// The latest reason, should it have changed meanwhile.
		const reason = finding.state === told.state ? reasonOfFinding(finding) : told.reason;
		deps.report({isHealthy: told.state === 'healthy', message: reason ?? ''});
	};

	/** Soon after each connect and then now and then: a report that is lost is lost without a word. */
	const reassert = async (): Promise<void> => {
		for (let waitMs = config.reassertMs * (0.75 + random() / 2); ; ) {
			const isDue = await clock.sleep(waitMs, AbortSignal.any([hurry.signal, signal])).then(
				() => true,
				() => false,
			);
			signal.throwIfAborted();
			if (isDue) tellAgain();
			waitMs = isDue ? config.reassertMs * (0.75 + random() / 2) : settledMs * (1 + random());
			if (!isDue) hurry = new AbortController();
		}
	};

	const end = async (): Promise<void> => {
		stopping.abort();
		for (const unsubscribe of unsubscribes) unsubscribe();
		await Promise.all(probers.map(prober => prober.stop()));
	};

	const leave = async (): Promise<void> => {
		await end();
		if (told?.state !== 'healthy') return;
		deps.onLeaving();
		finding = {state: 'unhealthy', reason: 'the agent stops'};
		tell(finding);
		const enough = new AbortController();
		const late = clock.sleep(farewellMs, enough.signal).catch(() => {}); // They have heard.
		await Promise.race([late, deps.untilLeft(enough.signal)]);
		enough.abort();
	};

	const unsubscribes = [deps.onGateChange(onGate), deps.onConnected(() => hurry.abort())];
	probers = await deps.startProbers((name, isPassing) => {
		results({probe: name, result: isPassing ? 'success' : 'failure'});
		look();
	});
	onGate();
	reassert().catch(() => {}); // We stop.

	return {
		finished: Promise.race([never, ...probers.map(({finished}) => finished.then(() => never))]),
		status: () => ({
			state: finding.state,
			reason: reasonOfFinding(finding),
			since,
			reported: config.isReported,
			told,
			said: word && {...word, isKept},
			probes: probers.map(prober => prober.status()),
		}),
		told: () =>
			told && {
				isHealthy: told.state === 'healthy',
				// The latest, should it have changed meanwhile.
				reason: finding.state === told.state ? reasonOfFinding(finding) : told.reason,
				forMs: clock.monotonicMs() - toldMs,
			},
		withheld: () => reasonOfFinding(withheld()),
		say: async (said, input) => {
			word = {said, reason: readReason(input), at: clock.now()};
			let problem: string | undefined;
			// Being kept is second to being done: a full disk must not keep a machine in the mesh.
			await deps.keeper.save(word).catch((error: unknown) => {
				problem = `not kept over a restart: ${reasonOf(error)}`;
				log.warn({err: error}, 'what was said is not kept over a restart');
			});
			isKept = problem === undefined;
			log.info({said, reason: word.reason}, 'told by a command');
			look();
			const by = config.isReported ? 'report' : deps.hasEntry ? 'registration' : 'nothing';
			return {state: finding.state, reason: reasonOfFinding(finding), by, isKept, problem};
		},
		tellAgain,
		leave,
		stop: async () => {
			await (deps.isEnded ? leave() : end());
		},
	};
}

function reasonOfFinding(finding: Finding | undefined): string | undefined {
	return finding === undefined || finding.state === 'healthy' ? undefined : finding.reason;
}

/** @throws AgentError `cli.usage` */
function readReason(input: unknown): string {
	const {reason = ''} = (input ?? {}) as {reason?: unknown};
	if (typeof reason !== 'string' || reason.length > longestReason || /[\x00-\x1f\x7f-\x9f]/.test(reason))
		throw new AgentError('cli.usage', `reason: not one line of at most ${longestReason} characters`, {
			hint: 'give a shorter one',
		});
	return reason;
}
