import {reasonOf} from '../errors.ts';
import type {Logger} from '../log.ts';
import {applyCapture, type CaptureDeps, prepareCapture, removeCapture, verifyCapture} from './capture.ts';
import {exists, placesIn} from './confirm.ts';
import {checkListeners} from './listeners.ts';

export interface WatchDeps extends CaptureDeps {
	readonly log: Logger;
}

/** Rules are looked at so often; a look takes some ten milliseconds. */
const lookEveryMs = 1000;
/** An Envoy that is restarted in place is back within half of this. */
const goneForMs = 3000;

/**
 * Keeps the rules as planned until the signal: what somebody else has changed is repaired or reported, and under
 * `bypass` they are out while Envoy does not answer. Never puts rules in where nobody has applied them.
 */
export async function watchCapture(deps: WatchDeps, signal: AbortSignal): Promise<void> {
	const {config, clock, log} = deps;
	let told = '';
	let goneSinceMs: number | undefined;
	let isBypassed = false;
	const tell = (text: string, write: () => void) => {
		if (text !== told) write();
		told = text;
	};
	while (!signal.aborted) {
		try {
			const places = placesIn(config.stateDir);
			if (isBypassed) {
				// Rejects for as long as Envoy does not answer.
				await applyCapture({...deps, config: {...config, waitMs: 0}}, signal);
				isBypassed = false;
				log.info('envoy answers again: capture is back');
			} else if (!(await exists(places.pending)) && (await exists(places.applied))) {
				goneSinceMs =
					config.onAgentDown === 'bypass' && !(await isAnswering(deps))
						? (goneSinceMs ?? clock.monotonicMs())
						: undefined;
				if (goneSinceMs !== undefined && clock.monotonicMs() - goneSinceMs >= goneForMs) {
					log.warn({goneForMs}, 'envoy does not answer: traffic goes past it, as capture.on-agent-down says');
					await removeCapture(deps);
					isBypassed = true;
					goneSinceMs = undefined;
				} else await lookForDrift(deps, signal, tell);
			}
		} catch (error) {
			if (!isBypassed)
				tell(reasonOf(error), () => log.warn({reason: reasonOf(error)}, 'the rules could not be looked after'));
		}
		await clock.sleep(lookEveryMs, signal).catch(() => {}); // the signal ends the loop
	}
}

async function lookForDrift(
	deps: WatchDeps,
	signal: AbortSignal,
	tell: (text: string, write: () => void) => void,
): Promise<void> {
	const {config, log} = deps;
	const {problems} = await verifyCapture(deps);
	if (problems.length === 0) return tell('', () => log.info('the rules are as planned again'));
	const text = problems.join('; ');
	if (config.onDrift === 'report') return tell(text, () => log.warn({problems}, 'the rules are not as planned'));
	tell(text, () => log.warn({problems}, 'the rules were changed: repairing them'));
	await applyCapture(deps, signal, {isForced: true});
}

async function isAnswering(deps: WatchDeps): Promise<boolean> {
	const {plan} = await prepareCapture(deps);
	const listeners = await checkListeners(deps.config, plan);
	return listeners.every(({isNeeded, isAnswering: answers}) => answers || !isNeeded);
}
