import type {CaptureConfig, Endpoint} from '../config/index.ts';
import {AgentError, reasonOf} from '../errors.ts';
import {systemClock} from '../lifecycle/index.ts';
import type {BackendName} from './backend.ts';
import {applyCapture, type CaptureDeps, prepareCapture, type Removed, removeCapture, verifyCapture} from './capture.ts';
import {awaitTrial, exists, placesIn, rolledBack} from './confirm.ts';
import {findTool} from './find-tool.ts';
import {hasMovedOn} from './follow.ts';
import {type Look, lookAt} from './look.ts';
import {probesFor} from './probes.ts';
import {runProgram} from './programs.ts';
import type {Plan} from './rules.ts';

/**
 * What an agent has a process of its own do, so that it holds none of this code itself. One message in JSON each way.
 * - `apply`: puts the rules in; those that have not held here before are on trial first
 * - `check`: compares them with the plan, and with `isRepaired` puts them right; without it they only follow what has
 *   changed on this machine
 * - `remove`: takes them away, as `capture.on-agent-down` says
 */
export type StepRequest =
	| {
			readonly kind: 'apply';
			readonly config: CaptureConfig;
			readonly controlPlane: readonly Endpoint[];
			/** Of this machine. */
			readonly address: string;
			readonly trialMs: number;
			readonly proxyUid: number;
	  }
	| {
			readonly kind: 'check';
			readonly config: CaptureConfig;
			readonly isRepaired: boolean;
			/** Digest of the rules as they were when they were last found to be as planned. */
			readonly known: string | undefined;
	  }
	| {readonly kind: 'remove'; readonly config: CaptureConfig};

export type StepReply =
	| {readonly kind: 'in'; readonly rules: RulesIn; readonly isChanged: boolean; readonly wasOnTrial: boolean}
	/** `check`: they differ from the plan, and were to be left so. */
	| {readonly kind: 'drifted'; readonly problems: readonly string[]; readonly look: Look}
	/** `check`: somebody has taken them away in order. */
	| {readonly kind: 'out'}
	| ({readonly kind: 'removed'} & Removed)
	| {readonly kind: 'failed'; readonly code: string; readonly message: string; readonly hint: string | undefined};

export interface RulesIn {
	readonly backend: BackendName;
	readonly count: number;
	readonly plan: string;
	readonly notes: readonly string[];
	readonly look: Look;
	/** `check`: what was put right. */
	readonly repaired: readonly string[];
}

export async function performStep(request: StepRequest, signal: AbortSignal): Promise<StepReply> {
	const deps: CaptureDeps = {config: request.config, run: runProgram, clock: systemClock};
	try {
		switch (request.kind) {
			case 'apply':
				return await apply(deps, request, signal);
			case 'check':
				return await check(deps, request, signal);
			case 'remove': {
				return {kind: 'removed', ...(await removeCapture(deps))};
			}
		}
	} catch (error) {
		const {code, hint} = error instanceof AgentError ? error : {code: 'internal', hint: undefined};
		return {kind: 'failed', code, message: reasonOf(error), hint};
	}
}

async function apply(
	deps: CaptureDeps,
	{config, controlPlane, address, trialMs, proxyUid}: Extract<StepRequest, {kind: 'apply'}>,
	signal: AbortSignal,
): Promise<StepReply> {
	const {backend, plan, isChanged, isOnTrial, notes} = await applyCapture(deps, signal, {
		proxyUid,
		confirm: {
			confirmMs: trialMs,
			command: [process.execPath, ...process.execArgv, process.argv[1]!],
			probes: probesFor(config, {controlPlane, address}),
			isOnlyNew: true,
		},
	});
	if (isOnTrial) {
		const undone = await awaitTrial(deps, signal, true);
		if (undone) throw rolledBack(undone);
	}
	const rules = await describe(backend, plan, notes, []);
	return {kind: 'in', rules, isChanged, wasOnTrial: isOnTrial};
}

async function check(
	deps: CaptureDeps,
	{isRepaired, known}: Extract<StepRequest, {kind: 'check'}>,
	signal: AbortSignal,
): Promise<StepReply> {
	const places = placesIn(deps.config.stateDir);
	if (!(await exists(places.applied))) return {kind: 'out'};
	// Before the comparison: what changes in between is then seen at the next look.
	const {backend: wanted, plan: planned} = await prepareCapture(deps);
	const seen = await describe(wanted.name, planned, planned.notes, []);
	const verified = await verifyCapture(deps);
	const {problems} = verified;
	if (problems.length === 0) return {kind: 'in', rules: seen, isChanged: false, wasOnTrial: false};
	const isFollowing = await hasMovedOn(verified, known, deps.config);
	// A change that waits for its confirmation is somebody else's to end.
	if (!(isRepaired || isFollowing) || (await exists(places.pending)))
		return {kind: 'drifted', problems, look: seen.look};
	const {backend, plan, notes} = await applyCapture(deps, signal, {isForced: true});
	const rules = await describe(backend, plan, notes, isFollowing ? [] : problems);
	const {problems: left} = await verifyCapture(deps);
	return left.length === 0
		? {kind: 'in', rules, isChanged: true, wasOnTrial: false}
		: {kind: 'drifted', problems: left, look: rules.look};
}

async function describe(
	backend: BackendName,
	plan: Plan,
	notes: readonly string[],
	repaired: readonly string[],
): Promise<RulesIn> {
	const commands = whatToLookAt(backend, plan);
	const files = ['/etc/resolv.conf'];
	const look = {commands, files, seen: await lookAt({commands, files})};
	return {backend, count: plan.rules.length, plan: plan.digest, notes, look, repaired};
}

/** A few milliseconds' worth, without what changes by itself (elements of sets, counters). */
function whatToLookAt(backend: BackendName, plan: Plan): Look['commands'] {
	const families = [...new Set(plan.rules.map(({family}) => family))];
	const wanted: (readonly [string, ...string[]])[] =
		backend === 'nft'
			? // One each: asked for two tables at once, nft 1.0.6 finds the second one missing.
				[
					...families.map(family => ['nft', '-s', 'list', 'table', family, 'onramp'] as const),
					['nft', 'list', 'chains'],
				]
			: families.map(family => [`${family === 'ip6' ? 'ip6' : 'ip'}${backend.slice(2)}-save`]);
	if (plan.host.hasPassThroughAddress) wanted.push(['ip', '-6', '-o', 'addr', 'show', 'dev', 'lo']);
	if (plan.host.policyRouting) wanted.push(['ip', 'rule'], ['ip', '-6', 'rule']);
	return wanted.map(([name, ...args]) => [findTool(name) ?? name, ...args] as const);
}
