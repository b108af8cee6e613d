import {rename, rm} from 'node:fs/promises';
import {reasonOf, systemCode} from '../errors.ts';
import type {CaptureDeps} from './capture.ts';
import {exists, type Pending, placesIn, type Rollback, readJson, writeJson} from './confirm.ts';
import {digestOf} from './plan.ts';
import {type Probe, responsibleRule, runProbe} from './probes.ts';
import type {Plan} from './rules.ts';

/** So many times in a row; one lost packet is no lock-out. */
const failuresBorne = 2;
const pauseMs = 250;

export interface GuardianDeps extends Pick<CaptureDeps, 'run' | 'clock'> {
	readonly stateDir: string;
	/** Digest of what to go back to, as whoever made the change has told it; `none`: no rules. */
	readonly previousDigest: string;
	/** Puts the earlier rules back, or takes ours away. */
	undo(previous: Plan | undefined): Promise<void>;
}

/**
 * Watches over a change until it is confirmed: what worked before it must go on working, and at the end of the time
 * somebody must have said that it is good. Otherwise the change is undone, with a report.
 */
export async function guardChange({run, clock, stateDir, previousDigest, undo}: GuardianDeps): Promise<void> {
	const places = placesIn(stateDir);
	const pending = await readJson<Pending>(places.pending);
	if (!pending) return;
	const previous = pending.previous && digestOf(pending.previous) === previousDigest ? pending.previous : undefined;
	const deadlineMs = clock.monotonicMs() + pending.confirmMs;
	await writeJson(places.armed, {pid: process.pid});
	const failures = new Map<string, number>();
	while (clock.monotonicMs() < deadlineMs) {
		if (!(await exists(places.pending))) return;
		if (await exists(places.loaded)) {
			const failed = await findFailed(pending, run);
			for (const {name} of pending.probes)
				failures.set(name, failed.some(probe => probe.name === name) ? (failures.get(name) ?? 0) + 1 : 0);
			const lost = failed.find(({name}) => failures.get(name)! > failuresBorne);
			if (lost) return undoChange(pending, `${lost.name}: it did before, and does not any more`, lost);
			if (failed.length === 0) await writeJson(places.passed, {});
		}
		await clock.sleep(Math.min(pauseMs, Math.max(deadlineMs - clock.monotonicMs(), 1)));
	}
	await undoChange(pending, `not confirmed within ${pending.confirmMs / 1000} s`, undefined);

	async function undoChange({plan}: Pending, reason: string, probe: Probe | undefined): Promise<void> {
		try {
			await rename(places.pending, places.undone);
		} catch (error) {
			if (systemCode(error) === 'ENOENT') return; // confirmed in this very moment
			throw error;
		}
		// Nothing else will undo it, so a tool that is busy for a moment must not be the end of it.
		for (;;) {
			try {
				await undo(previous);
				break;
			} catch (error) {
				process.stderr.write(`undo: ${reasonOf(error)}; once more\n`);
				await clock.sleep(1000);
			}
		}
		const report: Rollback = {at: clock.now().toISOString(), reason, rule: probe && responsibleRule(plan, probe)};
		await writeJson(places.rollback, report);
		await rm(places.armed, {force: true});
	}
}

async function findFailed({probes, plan}: Pending, run: CaptureDeps['run']): Promise<readonly Probe[]> {
	const results = await Promise.all(
		probes.map(async probe => [probe, await runProbe(probe, plan, run, probe.packet)] as const),
	);
	return results.filter(([, holds]) => !holds).map(([probe]) => probe);
}
