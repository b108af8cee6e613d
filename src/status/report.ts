import {reasonOf} from '../errors.ts';
import type {Clock, GateState, Readiness} from '../lifecycle/index.ts';

/** A readiness gate as JSON. */
export interface GateReport {
	readonly name: string;
	readonly open: boolean;
	readonly reason: string;
	readonly hint?: string | undefined;
	/** ISO 8601. */
	readonly since: string;
}

/** All that the agent says about itself; `onramp status --json` prints it as it is. */
export interface StatusReport {
	readonly version: string;
	readonly pid: number;
	/** When this was taken, ISO 8601. */
	readonly at: string;
	readonly uptimeS: number;
	/** All gates are open, and it is not about to end. */
	readonly ready: boolean;
	readonly stopping: boolean;
	readonly gates: readonly GateReport[];
	/** What each part reports: `identity`, `controlPlane`, `relay`, `proxy`, `registration`, … */
	readonly parts: Readonly<Record<string, unknown>>;
}

export function reportGate({name, isOpen, reason, hint, since}: GateState): GateReport {
	return {name, open: isOpen, reason, hint, since: since.toISOString()};
}

/** Collects what the parts report. A part that fails to report says so in its place and hides no other. */
export class Reporter {
	readonly #parts = new Map<string, () => unknown>();
	readonly #readiness: Readiness;
	readonly #clock: Clock;
	readonly #version: string;
	readonly #isStopping: () => boolean;
	readonly #startedMs: number;

	constructor({
		readiness,
		clock,
		version,
		isStopping = () => false,
	}: {
		readonly readiness: Readiness;
		readonly clock: Clock;
		readonly version: string;
		readonly isStopping?: (() => boolean) | undefined;
	}) {
		this.#isStopping = isStopping;
		this.#readiness = readiness;
		this.#clock = clock;
		this.#version = version;
		this.#startedMs = clock.monotonicMs();
	}

	/** @param report - gives something that JSON can hold; called for each request */
	add(name: string, report: () => unknown): void {
		this.#parts.set(name, report);
	}

	report(): StatusReport {
		const parts: Record<string, unknown> = {};
		for (const [name, report] of this.#parts) parts[name] = reportPart(report);
		return {
			version: this.#version,
			pid: process.pid,
			at: this.#clock.now().toISOString(),
			uptimeS: Math.floor((this.#clock.monotonicMs() - this.#startedMs) / 1000),
			ready: this.#readiness.isReady && !this.#isStopping(),
			stopping: this.#isStopping(),
			gates: this.#readiness.states().map(reportGate),
			parts,
		};
	}
}

function reportPart(report: () => unknown): unknown {
	try {
		// Through JSON at once, so that one part with a cycle or a BigInt is not everyone's failure.
		return JSON.parse(JSON.stringify(report() ?? null));
	} catch (error) {
		return {error: `part could not report: ${reasonOf(error)}`};
	}
}
