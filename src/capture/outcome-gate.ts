// Loaded by the agent itself, and by none that captures by itself.
import {stat} from 'node:fs/promises';
import {reasonOf, systemCode} from '../errors.ts';
import type {Clock, Gate, Running} from '../lifecycle/index.ts';
import {never} from '../lifecycle/running.ts';
import type {Logger} from '../log.ts';
import {type Outcome, outcomePath, readOutcome} from './outcome.ts';

export interface OutcomeGateDeps {
	/** Of whoever changes the rules (`capture.state-dir`); more than to look up this one name there is not needed. */
	readonly stateDir: string;
	readonly gate: Gate;
	readonly clock: Clock;
	readonly log: Logger;
}

export interface OutcomeGate extends Running {
	/** What was last told; empty before. */
	status(): Outcome | Record<string, never>;
}

/** A look is one call to the kernel. Often while somebody waits for the rules. */
const lookEveryMs = {closed: 250, open: 2000};

const start = 'systemctl start onramp-capture; systemctl status onramp-capture tells why not';
const again = 'systemctl restart onramp-capture puts them in again';

/**
 * Readiness of a machine whose rules are a unit of their own: open while they are in, as that unit tells. They come after
 * the agent, so who waits for the agent alone must not wait for this gate.
 */
export function startOutcomeGate({stateDir, gate, clock, log}: OutcomeGateDeps): OutcomeGate {
	const stopping = new AbortController();
	let seen: string | undefined;
	let outcome: Outcome | undefined;
	let isOpen = false;
	const tell = (): void => {
		isOpen = outcome?.state === 'in';
		switch (outcome?.state) {
			case undefined:
				gate.close('the rules are not in yet', start);
				break;
			case 'in':
				gate.open(`${outcome.rules} rules with ${outcome.backend}`);
				break;
			case 'drifted':
				log.warn({reason: outcome.reason}, 'the rules of capture are not as planned');
				gate.close(`not as planned: ${outcome.reason}`, `onramp capture verify names all; ${again}`);
				break;
			case 'removed':
				log.warn({reason: outcome.reason}, 'the rules of capture were taken away');
				gate.close(outcome.reason, again);
				break;
			case 'failed':
				log.error({hint: outcome.hint}, `the rules of capture are not in: ${outcome.reason}`);
				gate.close(`not in, all traffic goes past Envoy: ${outcome.reason}`, outcome.hint);
				break;
		}
	};
	const look = async (): Promise<void> => {
		try {
			const {ino, mtimeMs} = await stat(outcomePath(stateDir));
			if (seen === `${ino} ${mtimeMs}`) return;
			outcome = await readOutcome(stateDir);
			seen = `${ino} ${mtimeMs}`;
			tell();
		} catch (error) {
			if (seen === String(systemCode(error))) return;
			seen = String(systemCode(error));
			outcome = undefined;
			if (seen === 'ENOENT') return tell();
			// A unit of an earlier version keeps this to itself, and is not started anew by an upgrade.
			isOpen = true;
			gate.open(`not told by onramp-capture.service until its next start: ${reasonOf(error)}`);
		}
	};
	const run = async (): Promise<void> => {
		while (!stopping.signal.aborted) {
			await look();
			await clock.sleep(isOpen ? lookEveryMs.open : lookEveryMs.closed, stopping.signal).catch(() => {}); // stopped
		}
	};
	const running = run();
	return {
		finished: never,
		status: () => outcome ?? {},
		stop: () => {
			stopping.abort();
			return running;
		},
	};
}
