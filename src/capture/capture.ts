import {mkdir} from 'node:fs/promises';
import type {CaptureConfig} from '../config/index.ts';
import {AgentError, reasonOf} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import {acquireLock} from '../lifecycle/lock.ts';
import type {Backend, BackendName, LiveRules} from './backend.ts';
import type {HostFacts} from './context.ts';
import {lookAtHost} from './host.ts';
import {checkListeners, type Listener, waitForListeners} from './listeners.ts';
import {countPlanned} from './nft.ts';
import {planBlock, planCapture} from './plan.ts';
import type {Run} from './programs.ts';
import {addHostState, missingHostState, readHostState, removeHostState} from './routing.ts';
import type {Plan} from './rules.ts';
import {findBackends, selectBackend} from './select.ts';

export interface CaptureDeps {
	readonly config: CaptureConfig;
	readonly run: Run;
	readonly clock: Clock;
}

export interface Prepared {
	readonly plan: Plan;
	readonly host: HostFacts;
	readonly backend: Backend;
}

/** Plan and way for this host; changes nothing. @throws AgentError when rules cannot be made or loaded here */
export async function prepareCapture(deps: CaptureDeps, make = planCapture): Promise<Prepared> {
	const {config, run} = deps;
	const host = await lookAtHost(config, run);
	return selectBackend(config.backend, host, facts => make(config, facts), run);
}

export interface ApplyOptions {
	/** Do not look whether Envoy and DNS answer. */
	readonly isForced?: boolean;
}

export interface Applied {
	readonly backend: BackendName;
	readonly plan: Plan;
	/** False when everything was there already. */
	readonly isChanged: boolean;
	readonly notes: readonly string[];
}

/**
 * Puts the rules in, or replaces those of an earlier plan, without a moment in between. Safe to repeat.
 * @throws AgentError `capture.not_ready` and what prepareCapture throws, all before anything is changed
 */
export async function applyCapture(
	deps: CaptureDeps,
	signal: AbortSignal,
	{isForced = false}: ApplyOptions = {},
): Promise<Applied> {
	const {config, clock} = deps;
	const {plan, backend} = await prepareCapture(deps);
	const live = await backend.read();
	if (
		live &&
		problemsOf(plan, live).length === 0 &&
		missingHostState(plan.host, await readHostState(deps.run)).length === 0
	)
		return {backend: backend.name, plan, isChanged: false, notes: plan.notes};
	const listeners = isForced
		? []
		: await waitForListeners(() => checkListeners(config, plan), {waitMs: config.waitMs, clock, signal});
	refuseIfNotReady(listeners);
	await locked(config, () => loadPlan(deps, backend, plan));
	const unheard = listeners
		.filter(({isAnswering}) => !isAnswering)
		.map(({name}) => `nothing answers for ${name}: such connections are refused`);
	return {backend: backend.name, plan, isChanged: true, notes: [...plan.notes, ...unheard]};
}

function refuseIfNotReady(listeners: readonly Listener[]): void {
	const missing = listeners.filter(({isNeeded, isAnswering}) => isNeeded && !isAnswering);
	if (missing.length === 0) return;
	throw new AgentError(
		'capture.not_ready',
		`apply capture: no answer from ${missing.map(({name}) => name).join(', ')}`,
		{
			hint: 'nothing was changed; start Envoy and the agent first (onramp status), or raise capture.wait',
		},
	);
}

/** What the rules lead to before them, what nothing leads to any more after them. */
async function loadPlan({run}: CaptureDeps, backend: Backend, plan: Plan): Promise<void> {
	await addHostState(run, plan.host);
	await backend.load(plan);
	for (const other of await findBackends(run))
		if (other.name !== backend.name && (await other.read())) await other.remove();
	await removeHostState(run, plan.host);
}

export interface Removed {
	/** What was there. */
	readonly backends: readonly BackendName[];
	/** Under the policy `block` traffic is now refused instead. */
	readonly isBlocking: boolean;
}

/**
 * Takes away all that bears our mark, whatever today's settings say. Safe to repeat.
 * @param isComplete - also under the policy `block`, which otherwise leaves rules that refuse
 */
export async function removeCapture(deps: CaptureDeps, {isComplete = false} = {}): Promise<Removed> {
	return locked(deps.config, async () => {
		if (deps.config.onAgentDown === 'block' && !isComplete) {
			const {plan, backend} = await prepareCapture(deps, planBlock);
			await loadPlan(deps, backend, plan);
			return {backends: [backend.name], isBlocking: true};
		}
		const backends: BackendName[] = [];
		for (const backend of await findBackends(deps.run)) {
			if (!(await backend.read())) continue;
			await backend.remove();
			backends.push(backend.name);
		}
		await removeHostState(deps.run, undefined);
		return {backends, isBlocking: false};
	});
}

export interface Verified {
	readonly backend: BackendName;
	readonly plan: Plan;
	readonly live: LiveRules | undefined;
	/** What differs from the plan; empty = all is as planned. */
	readonly problems: readonly string[];
}

/** Compares what is in the kernel with what ought to be. Changes nothing. */
export async function verifyCapture(deps: CaptureDeps): Promise<Verified> {
	const {plan, backend} = await prepareCapture(deps);
	const live = await backend.read();
	const problems = live ? problemsOf(plan, live) : [`no rules of ours are in ${backend.name}`];
	const others: string[] = [];
	for (const other of await findBackends(deps.run))
		if (other.name !== backend.name && (await other.read())) others.push(`rules of ours are also in ${other.name}`);
	const missing = missingHostState(plan.host, await readHostState(deps.run));
	return {backend: backend.name, plan, live, problems: [...problems, ...others, ...missing]};
}

/** In words; empty when the live rules are those of the plan. */
export function problemsOf(plan: Plan, live: LiveRules): readonly string[] {
	const problems: string[] = [...live.missing];
	if (live.planDigest === undefined) problems.push('the live rules do not say which plan they are of');
	else if (live.planDigest !== plan.digest)
		problems.push(`the live rules are of another plan (${live.planDigest}, wanted ${plan.digest})`);
	const planned = countPlanned(plan);
	for (const chain of new Set([...Object.keys(planned), ...Object.keys(live.counts)])) {
		const [wanted, seen] = [planned[chain] ?? 0, live.counts[chain] ?? 0];
		if (wanted !== seen) problems.push(`${chain}: ${seen} rules, wanted ${wanted}`);
	}
	if (problems.length === 0 && live.loadedFingerprint !== live.fingerprint)
		problems.push(
			live.loadedFingerprint === undefined
				? 'the load of the rules was cut short'
				: 'the rules have been changed since they were loaded',
		);
	return [...problems, ...live.inFront.map(where => `in front of our rules: ${where}`)];
}

/** One change at a time on this machine. */
async function locked<T>({stateDir}: CaptureConfig, change: () => Promise<T>): Promise<T> {
	await mkdir(stateDir, {recursive: true, mode: 0o700}).catch((cause: unknown) => {
		throw new AgentError('capture.permission', `make ${stateDir}: ${reasonOf(cause)}`, {
			cause,
			hint: 'run it as root, or set capture.state-dir; nothing was changed',
		});
	});
	const lock = await acquireLock(`${stateDir}/lock`).catch((cause: unknown) => {
		if (!(cause instanceof AgentError)) throw cause;
		throw new AgentError('capture.busy', `change capture: ${cause.message}`, {
			cause,
			hint: 'wait for it to end, then try again',
		});
	});
	try {
		return await change();
	} finally {
		await lock.release();
	}
}
