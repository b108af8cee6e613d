// What is written down of a change of rules: for the next one, and for the agent.
import type {CaptureConfig} from '../config/index.ts';
import {AgentError, reasonOf} from '../errors.ts';
import type {Backend} from './backend.ts';
import {exists, placesIn, writeJson} from './confirm.ts';
import {type Result, readOutcome, writeOutcome} from './outcome.ts';
import type {Plan} from './rules.ts';

/** Settings by which rules that are in were made. */
export interface AppliedSettings {
	/** Digest of the plan: a trial that was undone has left others. */
	readonly plan: string;
	readonly config: CaptureConfig;
}

export async function noteApplied(config: CaptureConfig, backend: Pick<Backend, 'name'>, plan: Plan): Promise<void> {
	const {applied, settings} = placesIn(config.stateDir);
	const made: AppliedSettings = {plan: plan.digest, config};
	await writeJson(settings, made);
	await writeJson(applied, plan);
	await writeOutcome(config.stateDir, rulesAreIn(backend, plan));
}

export const rulesAreIn = ({name}: Pick<Backend, 'name'>, {rules, digest}: Plan): Result => ({
	state: 'in',
	backend: name,
	rules: rules.length,
	plan: digest,
});

export const removed = (reason: string): Result => ({state: 'removed', reason});

/** Tells the agent why there are no rules. Who fails to change those that are in leaves them, and what was said of them, alone. */
export async function noteFailure({stateDir}: Pick<CaptureConfig, 'stateDir'>, error: unknown): Promise<void> {
	const hint = error instanceof AgentError ? error.hint : undefined;
	if (!(await exists(placesIn(stateDir).applied).catch(() => true)))
		await writeOutcome(stateDir, {state: 'failed', reason: reasonOf(error), hint});
}

/** What a unit's failure is told as: by whoever failed, or else by systemd, as after a kill. */
export async function failureOfUnit({stateDir}: Pick<CaptureConfig, 'stateDir'>, result: string): Promise<Result> {
	// What cannot be read must not be in the way of who takes the rules away.
	const told = await readOutcome(stateDir).catch(() => undefined);
	if (told?.state === 'failed') return told;
	const hint = 'journalctl -u onramp-capture -n 20; once it is mended: systemctl restart onramp-capture';
	return {state: 'failed', reason: `onramp-capture.service could not put the rules in (${result})`, hint};
}
