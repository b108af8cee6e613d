import {lstat, mkdir, rm} from 'node:fs/promises';
import type {CaptureConfig} from '../config/index.ts';
import {AgentError, reasonOf} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import {acquireLock} from '../lifecycle/lock.ts';
import type {Backend, BackendName, LiveRules} from './backend.ts';
import {armGuardian, exists, isProved, placesIn, readJson, writeJson} from './confirm.ts';
import type {HostFacts} from './context.ts';
import {lookAtHost} from './host.ts';
import {checkListeners, type Listener, waitForListeners} from './listeners.ts';
import {countPlanned} from './nft.ts';
import {refusePeers, removePeers} from './peers.ts';
import {planBlock, planCapture} from './plan.ts';
import {type Probe, runProbe} from './probes.ts';
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
export async function prepareCapture(
	{config, run}: CaptureDeps,
	make = planCapture,
	way: CaptureConfig['backend'] = config.backend,
): Promise<Prepared> {
	const host = await lookAtHost(config, run);
	return selectBackend(way, host, facts => make(config, facts), run);
}

export interface ApplyOptions {
	/** Do not look whether Envoy and DNS answer. */
	readonly isForced?: boolean;
	/** Take the rules of Istio's own tool away in the same go. */
	readonly isTakeOver?: boolean;
	/** Undo the change unless it is confirmed. */
	readonly confirm?: {
		readonly confirmMs: number;
		/** This program, up to its subcommand. */
		readonly command: readonly string[];
		readonly probes: (host: HostFacts) => readonly Probe[];
		/** Rules that have held here before need no second trial. */
		readonly isOnlyNew?: boolean;
	};
	/** Who runs Envoy; refused unless the rules exempt that user, as its own connections would be led to itself. */
	readonly proxyUid?: number;
}

export interface Applied {
	readonly backend: BackendName;
	readonly plan: Plan;
	/** False when everything was there already. */
	readonly isChanged: boolean;
	/** Undone by itself unless it is confirmed. */
	readonly isOnTrial: boolean;
	readonly notes: readonly string[];
}

/**
 * Puts the rules in, or replaces those of an earlier plan, without a moment in between. Safe to repeat.
 * @throws AgentError `capture.not_ready` and what prepareCapture throws, all before anything is changed
 */
export async function applyCapture(
	deps: CaptureDeps,
	signal: AbortSignal,
	{isForced = false, isTakeOver = false, confirm, proxyUid}: ApplyOptions = {},
): Promise<Applied> {
	const {config, clock} = deps;
	const [{plan, backend, host}] = await Promise.all([prepareCapture(deps), refusePeers(deps.run, isTakeOver)]);
	if (proxyUid !== undefined) refuseLoop(config, host, proxyUid);
	const live = await backend.read();
	if (
		live &&
		problemsOf(plan, live).length === 0 &&
		missingHostState(plan.host, await readHostState(deps.run)).length === 0
	)
		return {backend: backend.name, plan, isChanged: false, isOnTrial: false, notes: plan.notes};
	const listeners = isForced
		? []
		: await waitForListeners(() => checkListeners(config, plan), {waitMs: config.waitMs, clock, signal});
	refuseIfNotReady(listeners);
	const trial = confirm?.isOnlyNew && (await isProved(config, plan)) ? undefined : confirm;
	await locked(config, async () => {
		const places = placesIn(config.stateDir);
		if (await exists(places.pending))
			throw new AgentError('capture.busy', 'apply capture: an earlier change waits for its confirmation', {
				hint: 'onramp capture confirm, or wait until it is undone',
			});
		if (trial) await arm(deps, plan, live, trial.probes(host), trial);
		await loadPlan(deps, backend, plan);
		if (isTakeOver) await removePeers(deps.run);
		if (trial) await writeJson(places.loaded, {});
		await writeJson(places.applied, plan);
	});
	const unheard = listeners
		.filter(({isAnswering}) => !isAnswering)
		.map(({name}) => `nothing answers for ${name}: such connections are refused`);
	return {
		backend: backend.name,
		plan,
		isChanged: true,
		isOnTrial: trial !== undefined,
		notes: [...plan.notes, ...unheard],
	};
}

function refuseLoop({users}: CaptureConfig, host: HostFacts, proxyUid: number): void {
	if (users.some(name => host.users[name]?.uid === proxyUid)) return;
	throw new AgentError(
		'capture.user_missing',
		`apply capture: Envoy runs as uid ${proxyUid}, which is not in capture.users (${users.join(', ')}): its own connections would be led back to it`,
		{hint: 'run the agent as one of these users, or name its user with capture.users; nothing was changed'},
	);
}

async function arm(
	{config, run, clock}: CaptureDeps,
	plan: Plan,
	live: LiveRules | undefined,
	probes: readonly Probe[],
	{confirmMs, command}: NonNullable<ApplyOptions['confirm']>,
): Promise<void> {
	const applied = await readJson<Plan>(placesIn(config.stateDir).applied);
	const previous = live && applied?.digest === live.planDigest ? applied : undefined;
	const results = await Promise.all(
		probes.map(async probe => [probe, await runProbe(probe, previous, run, probe.packet)] as const),
	);
	const held = results.filter(([, holds]) => holds).map(([probe]) => probe);
	const id = `${clock.now().getTime().toString(36)}-${process.pid}`;
	await armGuardian(config.stateDir, {id, plan, previous, probes: held, confirmMs}, command, clock);
}

/** What the guardian does when a change is not confirmed. */
export async function undoCapture(
	deps: Pick<CaptureDeps, 'run' | 'clock'>,
	stateDir: string,
	previous: Plan | undefined,
): Promise<void> {
	await locked({stateDir}, async () => {
		if (previous) {
			const backends = await findBackends(deps.run);
			for (const backend of backends) {
				const live = await backend.read();
				if (!live && backend !== backends.at(-1)) continue;
				await loadPlan(deps, backend, previous);
				await writeJson(placesIn(stateDir).applied, previous);
				return;
			}
		}
		await removeAll(deps.run);
		await rm(placesIn(stateDir).applied, {force: true});
	});
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
async function loadPlan({run}: Pick<CaptureDeps, 'run'>, backend: Backend, plan: Plan): Promise<void> {
	await addHostState(run, plan.host);
	await backend.load(plan);
	const others = (await findBackends(run)).filter(({name}) => name !== backend.name);
	await Promise.all([
		removeHostState(run, plan.host),
		...others.map(async other => (await readIfAllowed(other)) && other.remove()),
	]);
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
	return lockedIfOwn(deps.config, async () => {
		if (deps.config.onAgentDown === 'block' && !isComplete) {
			const {plan, backend} = await prepareCapture(deps, planBlock);
			await loadPlan(deps, backend, plan);
			return {backends: [backend.name], isBlocking: true};
		}
		const backends = await removeAll(deps.run);
		// Whoever takes the rules away by hand has decided; a guardian must not bring earlier ones back.
		for (const path of [placesIn(deps.config.stateDir).pending, placesIn(deps.config.stateDir).applied])
			await rm(path, {force: true});
		return {backends, isBlocking: false};
	});
}

/** Who may use one way may not even look at another: then that other has nothing that we could have put there. */
async function readIfAllowed(backend: Backend): Promise<LiveRules | undefined> {
	try {
		return await backend.read();
	} catch (error) {
		if (error instanceof AgentError && error.code === 'capture.permission') return undefined;
		throw error;
	}
}

async function removeAll(run: Run): Promise<readonly BackendName[]> {
	const found = await Promise.all(
		(await findBackends(run)).map(async backend => ((await readIfAllowed(backend)) ? [backend] : [])),
	);
	const present = found.flat();
	for (const backend of present) await backend.remove();
	await removeHostState(run, undefined);
	return present.map(({name}) => name);
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
		if (other.name !== backend.name && (await readIfAllowed(other)))
			others.push(`rules of ours are also in ${other.name}`);
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

/** What is read back from here is loaded as rules by whoever has the right, so nobody else may have written it. */
async function refuseForeign(stateDir: string): Promise<void> {
	const own = process.geteuid!();
	const found = await lstat(stateDir);
	const fault = !found.isDirectory()
		? 'it is no directory of its own'
		: found.uid !== own
			? `it belongs to uid ${found.uid}, not ${own}`
			: found.mode & 0o022
				? 'other users can write in it'
				: undefined;
	if (fault !== undefined)
		throw new AgentError('capture.permission', `change capture: use ${stateDir}: ${fault}`, {
			hint: `move ${stateDir} away, or set capture.state-dir to a place of this user's; nothing was changed`,
		});
}

/**
 * Whoever may take rules away can do so where another user has put them in: nothing is read back for it, and the
 * kernel takes each step whole.
 */
async function lockedIfOwn<T>(config: Pick<CaptureConfig, 'stateDir'>, change: () => Promise<T>): Promise<T> {
	const found = await lstat(config.stateDir).catch(() => undefined);
	return found && found.uid !== process.geteuid!() ? change() : locked(config, change);
}

/** One change at a time on this machine. */
async function locked<T>({stateDir}: Pick<CaptureConfig, 'stateDir'>, change: () => Promise<T>): Promise<T> {
	await mkdir(stateDir, {recursive: true, mode: 0o700}).catch((cause: unknown) => {
		throw new AgentError('capture.permission', `make ${stateDir}: ${reasonOf(cause)}`, {
			cause,
			hint: 'run it as root, or set capture.state-dir; nothing was changed',
		});
	});
	await refuseForeign(stateDir);
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
