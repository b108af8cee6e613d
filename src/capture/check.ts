import type {CaptureConfig} from '../config/index.ts';
import {AgentError} from '../errors.ts';
import {type AppliedSettings, rulesAreIn} from './applied.ts';
import {applyCapture, type CaptureDeps, refuseForeign, verifyCapture} from './capture.ts';
import {exists, placesIn, readJson} from './confirm.ts';
import {hasMovedOn} from './follow.ts';
import {readOutcome, writeOutcome} from './outcome.ts';
import type {Plan} from './rules.ts';

export interface Checked {
	/** What differed from the plan; empty = nothing did, or nothing is to be looked after. */
	readonly problems: readonly string[];
	readonly isRepaired: boolean;
}

const nothing: Checked = {problems: [], isRepaired: false};

/**
 * One look for drift: what others have changed is put right or reported, as `capture.on-drift` says, by the settings that
 * the rules were made with and this machine as it is now. Leaves alone what nobody has applied, what is on trial, and
 * what a trial has gone back to.
 */
export async function checkCapture(
	{
		config: {stateDir},
		run,
		clock,
	}: Pick<CaptureDeps, 'run' | 'clock'> & {readonly config: Pick<CaptureConfig, 'stateDir'>},
	signal: AbortSignal,
): Promise<Checked> {
	const places = placesIn(stateDir);
	if (!(await exists(stateDir))) return nothing;
	refuseForeign(stateDir);
	const [applied, settings] = [await readJson<Plan>(places.applied), await readJson<AppliedSettings>(places.settings)];
	if (!applied || settings?.plan !== applied.digest || (await exists(places.pending))) return nothing;
	const deps = {config: settings.config, run, clock};
	const verified = await verifyCapture(deps);
	const told = await readOutcome(stateDir).catch(() => undefined);
	if (verified.problems.length === 0) {
		if (told?.state === 'drifted') await writeOutcome(stateDir, rulesAreIn({name: verified.backend}, verified.plan));
		return nothing;
	}
	// Told already, and not to be mended, or not by us: each try would be a change of rules that leads to the next look.
	if (told?.state === 'drifted' && told.reason === verified.problems.join('; ')) return nothing;
	if (settings.config.onDrift === 'report' && !(await hasMovedOn(verified, applied.digest, settings.config))) {
		await writeOutcome(stateDir, {state: 'drifted', reason: verified.problems.join('; ')});
		return {problems: verified.problems, isRepaired: false};
	}
	// Somebody may be changing them at this moment, and not have said yet by which settings.
	const onlyIf = async () =>
		(await exists(places.applied)) && (await readJson<AppliedSettings>(places.settings))?.plan === settings.plan;
	try {
		await applyCapture(deps, signal, {isForced: true, onlyIf});
	} catch (error) {
		if (error instanceof AgentError && error.code === 'capture.busy') return nothing;
		throw error;
	}
	const {problems: left} = await verifyCapture(deps);
	if (left.length === 0) return {problems: verified.problems, isRepaired: true};
	await writeOutcome(stateDir, {state: 'drifted', reason: left.join('; ')});
	return {problems: left, isRepaired: false};
}
