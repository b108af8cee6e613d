import {fetchStatus, type StatusReport} from '../../status/index.ts';

export interface WaitDeps {
	readonly controlSocketPath: string;
	readonly waitMs: number;
	/** An agent that is on its way out, whose answers do not count. */
	readonly formerPid: number | undefined;
	readonly say: (line: string) => void;
	/** Why the wait is in vain, or undefined. */
	readonly failure: () => Promise<string | undefined>;
	readonly signal: AbortSignal;
}

const pollMs = 100;
/** Asking systemd costs a process. */
const failurePollMs = 1000;
/** What has failed beside the agent, it hears of a moment later, and can say more of it. */
const hearsWithinMs = 1000;

/**
 * Waits until the agent is ready, with a line for each gate that opens; otherwise says which are closed, why, and what
 * to do. True if it is ready.
 */
export async function untilReady(deps: WaitDeps): Promise<boolean> {
	const {controlSocketPath, waitMs, formerPid, say, failure, signal} = deps;
	const startedMs = performance.now();
	let nextFailureMs = startedMs + failurePollMs;
	const told = new Set<string>();
	let last: StatusReport | undefined;
	let fault: string | undefined;
	let faultMs = Number.POSITIVE_INFINITY;
	for (;;) {
		const report = await fetchStatus(controlSocketPath).catch(() => undefined);
		if (report && report.pid !== formerPid) {
			last = report;
			for (const {name, reason} of report.gates.filter(({name, open}) => open && !told.has(name))) {
				told.add(name);
				say(`  ${name}: ${reason}`);
			}
			if (report.ready) {
				say(`ready: ${identityOf(report) ?? 'this machine is a workload of the mesh'}`);
				return true;
			}
		}
		const nowMs = performance.now();
		if (fault === undefined && nowMs >= nextFailureMs) {
			fault = await failure();
			nextFailureMs = nowMs + failurePollMs;
			if (fault !== undefined) faultMs = nowMs;
		}
		if (nowMs - faultMs >= hearsWithinMs || signal.aborted || nowMs - startedMs >= waitMs) break;
		await new Promise(resolve => setTimeout(resolve, pollMs));
	}
	if (!signal.aborted) tellClosed(last, fault ?? `not ready within ${waitMs / 1000} s`, say);
	return false;
}

function tellClosed(report: StatusReport | undefined, why: string, say: (line: string) => void): void {
	if (!report) {
		say(`${why}: the agent does not answer`);
		say('  → journalctl -u onramp-agent -u onramp -n 50');
		return;
	}
	say(`${why}; the agent goes on trying`);
	for (const {name, reason, hint} of report.gates.filter(({open}) => !open)) {
		say(`  ${name}: ${reason}`);
		if (hint) say(`    → ${hint}`);
	}
}

function identityOf({parts}: StatusReport): string | undefined {
	const {spiffeId} = (parts['identity'] ?? {}) as {readonly spiffeId?: string};
	return spiffeId;
}
