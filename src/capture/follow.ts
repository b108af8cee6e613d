import type {CaptureConfig} from '../config/index.ts';
import {problemsOf, type Verified} from './capture.ts';
import {placesIn, readJson} from './confirm.ts';
import {digestOf} from './plan.ts';
import type {Plan} from './rules.ts';

/**
 * Whether nobody has touched the rules, but this machine has changed since, and the same settings now say other rules:
 * another server in resolv.conf, a unit with another control group. To follow that is no repair.
 * @param known - digest of the rules as they were when they were last found to be as planned
 */
export async function hasMovedOn(
	{plan, live}: Verified,
	known: string | undefined,
	{stateDir}: Pick<CaptureConfig, 'stateDir'>,
): Promise<boolean> {
	if (!live || known === undefined || known === plan.digest || known !== live.planDigest) return false;
	const applied = await readJson<Plan>(placesIn(stateDir).applied);
	// The file is believed only where it says what the kernel has.
	if (!applied || digestOf(applied) !== known) return false;
	return problemsOf(applied, {...live, inFront: []}).length === 0;
}
