import {existsSync, lstatSync, mkdirSync, realpathSync, statSync} from 'node:fs';
import {rm} from 'node:fs/promises';
import {dirname} from 'node:path';
import type {CaptureConfig} from '../config/index.ts';
import {AgentError, reasonOf} from '../errors.ts';
import type {Clock} from '../lifecycle/clock.ts';
import {acquireLock, type Lock, lastLock} from '../lifecycle/lock.ts';
import {noteApplied, removed, rulesAreIn} from './applied.ts';
import type {Backend, BackendName, LiveRules} from './backend.ts';
import {armGuardian, exists, isProved, placesIn, readJson, writeJson} from './confirm.ts';
import type {HostFacts} from './context.ts';
import {describeEnded, type Ended, endingConnections, readHeld, release} from './ending.ts';
import {lookAtHost} from './host.ts';
import {Kernel} from './kernel.ts';
import {checkListeners, type Listener, waitForListeners} from './listeners.ts';
import {countPlanned} from './nft.ts';
import {describeOlder, findOlder, readSockets} from './older.ts';
import {endOrphans} from './orphans.ts';
import {type Result, writeOutcome} from './outcome.ts';
import {refusePeers, removePeers} from './peers.ts';
import {digestOf, planBlock, planCapture} from './plan.ts';
import {type Probe, runProbe} from './probes.ts';
import type {Run} from './programs.ts';
import {addHostState, keepLive, keepWanted, missingHostState, readHostState, removeHostState} from './routing.ts';
import type {Plan, Redirect} from './rules.ts';
import {findBackends, guessBackend, type Selected, selectBackend} from './select.ts';

export interface CaptureDeps {
	readonly config: CaptureConfig;
	readonly run: Run;
	readonly clock: Clock;
	/** Asked while the settings were still being read, for the first change of rules. */
	readonly kernel?: Kernel;
}

export interface Prepared extends Selected {
	/** As it was looked at. */
	readonly kernel: Kernel;
}

/** Plan and way for this host; changes nothing. @throws AgentError when rules cannot be made or loaded here */
export async function prepareCapture(
	{config, run}: CaptureDeps,
	make = planCapture,
	way: CaptureConfig['backend'] = config.backend,
	kernel = new Kernel(run),
): Promise<Prepared> {
	const host = await lookAtHost(config, run, kernel);
	return {...(await selectBackend(way, host, facts => make(config, facts), run, kernel)), kernel};
}

interface Compared extends Prepared {
	readonly live: LiveRules | undefined;
	/** Empty = all is as planned. */
	readonly problems: readonly string[];
	/** Whether the kernel is known to take the plan. */
	readonly isSure: boolean;
}

/**
 * What is in the kernel beside what ought to be. Changes nothing.
 * @param mayGuess - for who loads the rules anyway: takes it for granted that this kernel can do what most can
 */
async function compareCapture(deps: CaptureDeps, kernel: Kernel, mayGuess: boolean): Promise<Compared> {
	const {config, run} = deps;
	const host = await lookAtHost(config, run, kernel);
	const make = (facts: HostFacts) => planCapture(config, facts);
	const guess = guessBackend(config.backend, host, make, run);
	const guessed = guess && (await beside({...guess, kernel}));
	// Rules of this very plan that are in the kernel say that it takes them.
	if (guessed?.live?.planDigest === guessed?.plan.digest && guessed?.live) return {...guessed, isSure: true};
	if (guessed && mayGuess) return {...guessed, isSure: false};
	return {...(await beside({...(await selectBackend(config.backend, host, make, run, kernel)), kernel})), isSure: true};
}

async function beside(prepared: Prepared): Promise<Omit<Compared, 'isSure'>> {
	const {backend, plan, kernel} = prepared;
	const [live, hostState] = await Promise.all([backend.read(kernel), readHostState(kernel)]);
	const problems = live ? problemsOf(plan, live) : [`no rules of ours are in ${backend.name}`];
	return {...prepared, live, problems: [...problems, ...missingHostState(plan.host, hostState)]};
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
	/** Asked when nobody else can change anything any more; false: the change is not wanted after all. */
	readonly onlyIf?: () => Promise<boolean>;
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
	options: ApplyOptions = {},
): Promise<Applied> {
	const {config, clock} = deps;
	const deadlineMs = clock.monotonicMs() + config.waitMs;
	const {kernel: _, ...later} = deps;
	for (let looking: CaptureDeps = deps; ; looking = later) {
		const outcome = await lockedLook(looking, kernel => tryToApply(deps, kernel, options));
		if ('isChanged' in outcome) return outcome;
		// Others may change the rules in the meantime, so all is looked at anew.
		const waitMs = Math.max(deadlineMs - clock.monotonicMs(), 0);
		const check = () => checkListeners(config, outcome.waitsFor);
		refuseIfNotReady(waitMs === 0 ? outcome.listeners : await waitForListeners(check, {waitMs, clock, signal}));
	}
}

interface Waiting {
	readonly waitsFor: Plan;
	readonly listeners: readonly Listener[];
}

async function tryToApply(deps: CaptureDeps, kernel: Kernel, options: ApplyOptions): Promise<Applied | Waiting> {
	const {config, run} = deps;
	const {isForced = false, isTakeOver = false, confirm, proxyUid, onlyIf} = options;
	if (onlyIf && !(await onlyIf()))
		throw new AgentError('capture.busy', 'apply capture: somebody has taken the rules away meanwhile', {
			hint: 'nothing was changed',
		});
	const places = placesIn(config.stateDir);
	// A trial is begun before the change, so it has to be known that the kernel takes it.
	const [compared] = await Promise.all([
		compareCapture(deps, kernel, confirm === undefined),
		refusePeers(run, kernel, isTakeOver),
	]);
	const change = async (to: Compared): Promise<Applied | Waiting> => {
		const {backend, plan, host, live, problems} = to;
		if (proxyUid !== undefined) refuseLoop(config, host, proxyUid);
		const done = {backend: backend.name, plan};
		if (problems.length === 0) {
			// Its maker may have died before it could write that down.
			await noteApplied(config, backend, plan);
			await rm(places.bypassed, {force: true});
			return {...done, isChanged: false, isOnTrial: false, notes: plan.notes};
		}
		const listeners = isForced ? [] : await checkListeners(config, plan);
		if (!areReady(listeners)) return {waitsFor: plan, listeners};
		if (await exists(places.pending))
			throw new AgentError('capture.busy', 'apply capture: an earlier change waits for its confirmation', {
				hint: 'onramp capture confirm, or wait until it is undone',
			});
		const trial = confirm?.isOnlyNew && (await isProved(config, plan)) ? undefined : confirm;
		if (trial) await arm(deps, plan, live, trial.probes(host), trial);
		// Read meanwhile, as the kernel takes its time for it.
		const sockets = readSockets();
		const ended = await loadPlan(deps, to, [live]);
		if (isTakeOver) await removePeers(run, kernel);
		if (trial) await writeJson(places.loaded, {});
		await noteApplied(config, backend, plan);
		await rm(places.bypassed, {force: true});
		const unheard = listeners
			.filter(({isAnswering}) => !isAnswering)
			.map(({name}) => `nothing answers for ${name}: such connections are refused`);
		const older = describeOlder(findOlder(plan, proxyPortsOf(config), await sockets), config.existingConnections);
		return {
			...done,
			isChanged: true,
			isOnTrial: trial !== undefined,
			notes: [...plan.notes, ...describeEnded(ended), ...unheard, ...older],
		};
	};
	if (compared.isSure) return change(compared);
	try {
		return await change(compared);
	} catch (error) {
		if (!(error instanceof AgentError) || error.code !== 'capture.unsupported') throw error;
		// This kernel cannot do what most can. Nothing was changed; what it can do is asked of it now.
		return change(await compareCapture(deps, kernel, false));
	}
}

export const proxyPortsOf = ({inboundPort, outboundPort}: CaptureConfig): readonly number[] => [
	inboundPort,
	outboundPort,
];

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
	// The file is believed only where it says what the kernel has.
	const previous = live && applied && digestOf(applied) === live.planDigest ? applied : undefined;
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
	await locked({stateDir}, deps.clock, async () => {
		const kernel = new Kernel(deps.run);
		if (previous) {
			const backends = findBackends(deps.run);
			for (const backend of backends) {
				const live = await backend.read(kernel);
				if (!live && backend !== backends.at(-1)) continue;
				await loadPlan(deps, {backend, plan: previous, kernel}, [live]);
				await writeJson(placesIn(stateDir).applied, previous);
				await writeOutcome(stateDir, rulesAreIn(backend, previous));
				return;
			}
		}
		await removeAll(deps.run, kernel);
		await rm(placesIn(stateDir).applied, {force: true});
		await writeOutcome(stateDir, removed('the change of rules was undone'));
	});
}

const areReady = (listeners: readonly Listener[]): boolean =>
	listeners.every(({isNeeded, isAnswering}) => isAnswering || !isNeeded);

function refuseIfNotReady(listeners: readonly Listener[]): void {
	if (areReady(listeners)) return;
	const missing = listeners.filter(({isNeeded, isAnswering}) => isNeeded && !isAnswering);
	throw new AgentError(
		'capture.not_ready',
		`apply capture: no answer from ${missing.map(({name}) => name).join(', ')}`,
		{
			hint: 'nothing was changed; start Envoy and the agent first (onramp status), or raise capture.wait',
		},
	);
}

/** What the rules lead to before them, what nothing leads to any more after them. */
async function loadPlan(
	{run}: Pick<CaptureDeps, 'run'>,
	{backend, plan, kernel}: Pick<Prepared, 'backend' | 'plan' | 'kernel'>,
	live: readonly (LiveRules | undefined)[],
): Promise<Ended> {
	const before = await readHostState(kernel);
	await addHostState(run, before, plan.host);
	const stay = new Set(plan.rules.flatMap(({family, verdict}) => (verdict.kind === 'redirect' ? [family] : [])));
	const held = await readHeld(kernel);
	const lost = [...redirectsOf(live), ...held].filter(({family}) => !stay.has(family));
	let ended: Ended;
	try {
		ended = await endingConnections(run, lost, () => backend.load(plan, kernel));
	} catch (error) {
		await removeHostState(run, await readHostState(new Kernel(run)), keepLive(before));
		throw error;
	}
	const others = findBackends(run).filter(({name}) => name !== backend.name);
	await Promise.all([
		removeHostState(run, before, keepWanted(plan.host)),
		...others.map(async other => (await readIfAllowed(other, kernel)) && other.remove(kernel)),
	]);
	await release(run, held);
	return ended;
}

export interface Removed extends Ended {
	/** What was there. */
	readonly backends: readonly BackendName[];
	/** Under the policy `block` traffic is now refused instead. */
	readonly isBlocking: boolean;
}

/**
 * Takes away all that bears our mark, whatever today's settings say. Safe to repeat.
 * @param isComplete - also under the policy `block`, which otherwise leaves rules that refuse
 * @param because - how it is told to the agent, if not as a decision of somebody
 */
export async function removeCapture(
	deps: CaptureDeps,
	{isComplete = false, because}: {readonly isComplete?: boolean; readonly because?: Result | undefined} = {},
): Promise<Removed> {
	return lockedIfOwn(deps, async kernel => {
		const {pending, applied, bypassed} = placesIn(deps.config.stateDir);
		if (deps.config.onAgentDown === 'block' && !isComplete) {
			const prepared = await prepareCapture(deps, planBlock, deps.config.backend, kernel);
			const {live} = await readAll(deps.run, kernel);
			const ended = await loadPlan(deps, prepared, live);
			await writeOutcome(deps.config.stateDir, because ?? removed('what ought to be captured is refused'));
			return {backends: [prepared.backend.name], isBlocking: true, ...ended};
		}
		// Whoever takes the rules away by hand has decided; neither a guardian nor a watch must bring them back, and not
		// either when this process dies half way.
		for (const path of [pending, applied, bypassed]) await rm(path, {force: true});
		const gone = await removeAll(deps.run, kernel);
		await writeOutcome(deps.config.stateDir, because ?? removed('the rules were taken away'));
		return {...gone, isBlocking: false};
	});
}

/** Takes the rules out for as long as Envoy does not answer, and keeps in mind that they are to come back. */
export async function withdrawCapture({config, run, clock}: CaptureDeps): Promise<void> {
	await locked(config, clock, async () => {
		const {applied, bypassed} = placesIn(config.stateDir);
		// Somebody may have taken them away for good.
		if (!(await exists(applied))) return;
		await writeJson(bypassed, {since: clock.now().toISOString()});
		await removeAll(run, new Kernel(run).ask());
		await rm(applied, {force: true});
		await writeOutcome(config.stateDir, removed('traffic goes past Envoy, which does not answer'));
	});
}

/** Who may use one way may not even look at another: then that other has nothing that we could have put there. */
async function readIfAllowed(backend: Backend, kernel: Kernel): Promise<LiveRules | undefined> {
	try {
		return await backend.read(kernel);
	} catch (error) {
		if (error instanceof AgentError && error.code === 'capture.permission') return undefined;
		throw error;
	}
}

async function removeAll(run: Run, kernel: Kernel): Promise<Omit<Removed, 'isBlocking'>> {
	const [hostState, {backends, live}] = await Promise.all([readHostState(kernel), readAll(run, kernel)]);
	const present = backends.filter((_, i) => live[i] !== undefined);
	const held = await readHeld(kernel);
	const ended = await endingConnections(run, [...redirectsOf(live), ...held], async () => {
		for (const backend of present) await backend.remove(kernel);
	});
	await removeHostState(run, hostState, keepWanted(undefined));
	await release(run, held);
	return {backends: present.map(({name}) => name), ...ended};
}

async function readAll(run: Run, kernel: Kernel) {
	const backends = findBackends(run);
	return {backends, live: await Promise.all(backends.map(backend => readIfAllowed(backend, kernel)))};
}

const redirectsOf = (live: readonly (LiveRules | undefined)[]): readonly Redirect[] =>
	live.flatMap(each => each?.redirects ?? []);

export interface Verified {
	readonly backend: BackendName;
	readonly plan: Plan;
	readonly live: LiveRules | undefined;
	/** What differs from the plan; empty = all is as planned. */
	readonly problems: readonly string[];
}

/** Compares what is in the kernel with what ought to be. Changes nothing. */
export async function verifyCapture(deps: CaptureDeps): Promise<Verified> {
	const {plan, backend, live, problems, kernel} = await compareCapture(deps, new Kernel(deps.run).ask(), false);
	const others: string[] = [];
	for (const other of findBackends(deps.run))
		if (other.name !== backend.name && (await readIfAllowed(other, kernel)))
			others.push(`rules of ours are also in ${other.name}`);
	return {backend: backend.name, plan, live, problems: [...problems, ...others]};
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
	if (problems.length === 0 && live.tampering !== undefined) problems.push(live.tampering);
	return [...problems, ...live.inFront.map(where => `in front of our rules: ${where}`)];
}

/**
 * What is read back from here is loaded as rules by whoever has the right, so nobody else may have written it, nor be
 * able to put another directory in its place.
 */
export function refuseForeign(stateDir: string): void {
	const own = process.geteuid!();
	const refuse = (fault: string) => {
		throw new AgentError('capture.permission', `change capture: use ${stateDir}: ${fault}`, {
			hint: `move ${stateDir} away, or set capture.state-dir to a place of this user's; nothing was changed`,
		});
	};
	const found = lstatSync(stateDir);
	if (!found.isDirectory()) refuse('it is no directory of its own');
	if (found.uid !== own) refuse(`it belongs to uid ${found.uid}, not ${own}`);
	if (found.mode & 0o022) refuse('other users can write in it');
	for (let path = realpathSync(stateDir); path !== '/'; ) {
		path = dirname(path);
		const {uid, mode} = lstatSync(path);
		const isSticky = (mode & 0o1000) !== 0;
		if ((uid !== 0 && uid !== own) || (mode & 0o022 && !isSticky)) refuse(`others can exchange it, by way of ${path}`);
	}
}

/**
 * Whoever may take rules away can do so where another user has put them in: nothing is read back for it, and the
 * kernel takes each step whole.
 */
async function lockedIfOwn<T>(deps: CaptureDeps, change: (kernel: Kernel) => Promise<T>): Promise<T> {
	const found = lstatSync(deps.config.stateDir, {throwIfNoEntry: false});
	return found && found.uid !== process.geteuid!() ? change(new Kernel(deps.run).ask()) : lockedLook(deps, change);
}

/** Files have the time of the last tick of the kernel's clock, not more exactly. */
const tickMs = 10;

/** Looks before the lock is taken, which saves a wait, and once more if somebody else has had it since. */
async function lockedLook<T>(
	{config, run, kernel, clock}: CaptureDeps,
	change: (kernel: Kernel) => Promise<T>,
): Promise<T> {
	const looked = kernel && kernel.atMs > changedAtMs(config.stateDir) + tickMs ? kernel : new Kernel(run).ask();
	const before = locksIn(config.stateDir);
	return locked(config, clock, lock => {
		const isLast = locksIn(config.stateDir) === before + 1 && lock.diedHolding === undefined;
		return change(isLast ? looked : new Kernel(run).ask());
	});
}

/** When somebody has last taken or released the lock. */
const changedAtMs = (stateDir: string): number => statSync(stateDir, {throwIfNoEntry: false})?.mtimeMs ?? 0;

const lockIn = (stateDir: string): string => `${stateDir}/lock`;

/** Grows by one each time. */
const locksIn = (stateDir: string): number => (existsSync(stateDir) ? lastLock(lockIn(stateDir)) : 0);

/** One change at a time on this machine. */
async function locked<T>(
	{stateDir}: Pick<CaptureConfig, 'stateDir'>,
	clock: Clock,
	change: (lock: Lock) => Promise<T>,
): Promise<T> {
	try {
		mkdirSync(stateDir, {recursive: true, mode: 0o700});
	} catch (cause) {
		throw new AgentError('capture.permission', `make ${stateDir}: ${reasonOf(cause)}`, {
			cause,
			hint: 'run it as root, or set capture.state-dir; nothing was changed',
		});
	}
	refuseForeign(stateDir);
	const lock = await acquireLock(lockIn(stateDir)).catch((cause: unknown) => {
		if (!(cause instanceof AgentError)) throw cause;
		throw new AgentError('capture.busy', `change capture: ${cause.message}`, {
			cause,
			hint: 'wait for it to end, then try again',
		});
	});
	try {
		if (lock.diedHolding !== undefined) await endOrphans(lock.diedHolding, clock);
		return await change(lock);
	} finally {
		await lock.release();
	}
}
