import {readFileSync} from 'node:fs';
import {reasonOf} from '../errors.ts';
import {startMonitor} from '../lifecycle/monitor.ts';
import type {Logger} from '../log.ts';
import {applyCapture, type CaptureDeps, verifyCapture, withdrawCapture} from './capture.ts';
import {exists, placesIn} from './confirm.ts';
import {hasMovedOn} from './follow.ts';
import {hasLegacyTables} from './iptables-save.ts';
import {checkListeners} from './listeners.ts';
import {captureMonitors} from './monitors.ts';
import type {Plan} from './rules.ts';

export interface WatchDeps extends CaptureDeps {
	readonly log: Logger;
}

/** So often it is asked whether anything has changed; only then programs are run to look at the rules. */
const lookEveryMs = 1000;
/** For what nothing tells of. */
const checkEveryMs = 30_000;
/** Who changes rules often changes many. */
const settleMs = 100;
/** An Envoy that is restarted in place is back within half of this. */
const goneForMs = 3000;

/** Plans depend on them, and to read them costs nothing. */
const files = ['/etc/resolv.conf', '/proc/self/net/if_inet6'];

/**
 * Keeps the rules as planned until the signal: what somebody else has changed is repaired or reported, and under
 * `bypass` they are out while Envoy does not answer, also if this process is started anew meanwhile. Never puts rules
 * in where nobody has applied them.
 */
export async function watchCapture(deps: WatchDeps, signal: AbortSignal): Promise<void> {
	const {clock} = deps;
	let nudge = new AbortController();
	let isNudged = true;
	const monitor = startMonitor(
		captureMonitors,
		() => {
			isNudged = true;
			nudge.abort();
		},
		clock,
		signal,
	);
	const watcher = new Watcher(deps, signal);
	let checkedAtMs = 0;
	let seen = '';
	try {
		while (!signal.aborted) {
			const now = files.map(readIfThere).join('\0');
			// iptables-legacy tells nobody.
			const isHeard = monitor.isListening() && !hasLegacyTables('ip') && !hasLegacyTables('ip6');
			const isDue = isNudged || now !== seen || !isHeard || clock.monotonicMs() - checkedAtMs >= checkEveryMs;
			if (isDue) {
				[isNudged, seen, checkedAtMs] = [false, now, clock.monotonicMs()];
				nudge = new AbortController();
			}
			// What could not be looked after is tried again soon.
			if (!(await watcher.look(isDue))) isNudged = true;
			await clock.sleep(lookEveryMs, AbortSignal.any([signal, nudge.signal])).catch(() => {}); // woken
			if (nudge.signal.aborted) await clock.sleep(settleMs, signal).catch(() => {});
		}
	} finally {
		monitor.stop();
	}
}

function readIfThere(path: string): string {
	try {
		return readFileSync(path, 'latin1');
	} catch {
		return '';
	}
}

class Watcher {
	readonly #deps: WatchDeps;
	readonly #signal: AbortSignal;
	readonly #places: ReturnType<typeof placesIn>;
	#told = '';
	#goneSinceMs: number | undefined;
	/** As it was at the last look; what Envoy has to answer on. */
	#plan: Plan | undefined;
	/** Digest of what was last found to be as planned. */
	#known: string | undefined;
	/** What a repair has left as it was. */
	#unmended = '';

	constructor(deps: WatchDeps, signal: AbortSignal) {
		this.#deps = deps;
		this.#signal = signal;
		this.#places = placesIn(deps.config.stateDir);
	}

	/** @returns false when it could not be done */
	async look(isDue: boolean): Promise<boolean> {
		try {
			if (await exists(this.#places.pending)) return true;
			if (await exists(this.#places.bypassed)) await this.#endBypass();
			else if (await exists(this.#places.applied)) await this.#keep(isDue);
			return true;
		} catch (error) {
			const reason = reasonOf(error);
			this.#tell(reason, () => this.#deps.log.warn({reason}, 'the rules could not be looked after'));
			return false;
		}
	}

	async #keep(isDue: boolean): Promise<void> {
		const {config, clock, log} = this.#deps;
		if (config.onAgentDown === 'bypass') {
			this.#goneSinceMs = (await this.#isAnswering()) ? undefined : (this.#goneSinceMs ?? clock.monotonicMs());
			if (this.#goneSinceMs !== undefined && clock.monotonicMs() - this.#goneSinceMs >= goneForMs) {
				log.warn({goneForMs}, 'envoy does not answer: traffic goes past it, as capture.on-agent-down says');
				this.#goneSinceMs = undefined;
				return withdrawCapture(this.#deps);
			}
		}
		if (isDue) await this.#lookForDrift();
	}

	/** Rules that are still there are those that a watch before this one had no time to take out. */
	async #endBypass(): Promise<void> {
		const {config, log} = this.#deps;
		if (!(await this.#isAnswering())) {
			if (await exists(this.#places.applied)) await withdrawCapture(this.#deps);
			return;
		}
		// Unless somebody takes them away for good in this moment.
		const onlyIf = () => exists(this.#places.bypassed);
		await applyCapture({...this.#deps, config: {...config, waitMs: 0}}, this.#signal, {onlyIf});
		log.info('envoy answers again: capture is back');
	}

	async #lookForDrift(): Promise<void> {
		const {config, log} = this.#deps;
		const verified = await verifyCapture(this.#deps);
		const {problems, plan} = verified;
		this.#plan = plan;
		log.debug({problems}, 'looked at the rules');
		if (problems.length === 0) {
			if (this.#known === undefined) log.info({plan: plan.digest}, 'the rules are as planned: looking after them');
			this.#known = plan.digest;
			return this.#tell('', () => log.info('the rules are as planned again'));
		}
		if (await hasMovedOn(verified, this.#known, config)) {
			await this.#load();
			return log.info({plan: plan.digest}, 'this machine has changed: the rules have followed');
		}
		const text = problems.join('; ');
		if (config.onDrift === 'report')
			return this.#tell(text, () => log.warn({problems}, 'the rules are not as planned'));
		// Loaded once more, they would be as they are, and what tells of changes would tell of that for ever.
		if (text === this.#unmended) return;
		this.#tell(text, () => log.warn({problems}, 'the rules were changed: repairing them'));
		await this.#load();
		const {problems: left} = await verifyCapture(this.#deps);
		this.#unmended = left.join('; ');
		if (left.length > 0) log.warn({problems: left}, 'the rules could not be put right');
	}

	async #load(): Promise<void> {
		await applyCapture(this.#deps, this.#signal, {isForced: true, onlyIf: () => exists(this.#places.applied)});
	}

	async #isAnswering(): Promise<boolean> {
		this.#plan ??= (await verifyCapture(this.#deps)).plan;
		const listeners = await checkListeners(this.#deps.config, this.#plan);
		return listeners.every(({isNeeded, isAnswering: answers}) => answers || !isNeeded);
	}

	#tell(text: string, write: () => void): void {
		if (text !== this.#told) write();
		this.#told = text;
	}
}
