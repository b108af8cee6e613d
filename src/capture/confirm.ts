import {spawn} from 'node:child_process';
import {mkdir, open, readFile, rename, rm, stat} from 'node:fs/promises';
import type {CaptureConfig} from '../config/index.ts';
import {AgentError, systemCode} from '../errors.ts';
import {writeFileAtomic} from '../lifecycle/atomic-file.ts';
import type {Clock} from '../lifecycle/clock.ts';
import {findProgram} from '../lifecycle/find-program.ts';
import type {Probe} from './probes.ts';
import {runProgram} from './programs.ts';
import type {Plan} from './rules.ts';

/**
 * A change that is undone unless it is confirmed. The file is what decides: who renames it first, the person who
 * confirms or the guardian who undoes, has done so for both.
 */
export interface Pending {
	readonly id: string;
	readonly plan: Plan;
	/** What to go back to; undefined = no rules. */
	readonly previous: Plan | undefined;
	/** Those that held before. */
	readonly probes: readonly Probe[];
	readonly confirmMs: number;
}

/** Written by the guardian when it has undone a change. */
export interface Rollback {
	readonly at: string;
	readonly reason: string;
	/** In words; undefined when no rule decides over what failed. */
	readonly rule: string | undefined;
}

export const rolledBack = ({reason, rule}: Rollback): AgentError =>
	new AgentError('capture.rolled_back', `apply capture: undone: ${reason}${rule ? `; decided by ${rule}` : ''}`, {
		hint: 'the rules are those from before; mend the settings that made that rule, and apply again',
	});

export const placesIn = (stateDir: string) => ({
	pending: `${stateDir}/pending.json`,
	confirmed: `${stateDir}/confirmed.json`,
	undone: `${stateDir}/undone.json`,
	/** The guardian is there. */
	armed: `${stateDir}/armed`,
	/** The rules are in. */
	loaded: `${stateDir}/loaded`,
	/** All probes have held since. */
	passed: `${stateDir}/passed`,
	rollback: `${stateDir}/rollback.json`,
	guardianLog: `${stateDir}/guardian.log`,
	applied: `${stateDir}/applied.json`,
	/** By which they were made: what is edited since then waits for the next apply, and its trial. */
	settings: `${stateDir}/settings.json`,
	/** Rules are out only for as long as Envoy does not answer. */
	bypassed: `${stateDir}/bypassed.json`,
});

export async function readJson<T>(path: string): Promise<T | undefined> {
	try {
		return JSON.parse(await readFile(path, 'utf8')) as T;
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return undefined;
		throw error;
	}
}

/** Whole or not at all, but not kept over a power cut, which no rules outlive either. */
export const writeJson = (path: string, value: unknown): Promise<void> =>
	writeFileAtomic(path, `${JSON.stringify(value)}\n`, 0o600, undefined, false);

export async function exists(path: string): Promise<boolean> {
	try {
		await stat(path);
		return true;
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return false;
		throw error;
	}
}

/** @returns false when there was nothing to confirm, or it was undone already */
export async function confirmPending(config: Pick<CaptureConfig, 'stateDir' | 'provedPath'>): Promise<boolean> {
	const places = placesIn(config.stateDir);
	try {
		await rename(places.pending, places.confirmed);
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return false;
		throw error;
	}
	const confirmed = await readJson<Pending>(places.confirmed);
	if (confirmed) await noteProved(config, confirmed.plan);
	return true;
}

/** Rules by digest, the last ones that were confirmed. */
const mostProved = 16;

async function readProved({provedPath}: Pick<CaptureConfig, 'provedPath'>): Promise<readonly string[]> {
	// What cannot be read only costs another trial.
	const proved = await readJson<{readonly proved?: readonly string[]}>(provedPath).catch(() => undefined);
	return Array.isArray(proved?.proved) ? proved.proved : [];
}

/** Whether these very rules have been confirmed on this machine. */
export async function isProved(config: Pick<CaptureConfig, 'provedPath'>, {digest}: Plan): Promise<boolean> {
	return (await readProved(config)).includes(digest);
}

async function noteProved(config: Pick<CaptureConfig, 'provedPath'>, {digest}: Plan): Promise<void> {
	const others = (await readProved(config)).filter(each => each !== digest);
	await writeJson(config.provedPath, {proved: [digest, ...others].slice(0, mostProved)}).catch(() => {});
}

/**
 * Waits until what worked before works after, and confirms, unless somebody else is to.
 * @returns what has undone the change, if it did not hold
 */
export async function awaitTrial(
	{config, clock}: {readonly config: CaptureConfig; readonly clock: Clock},
	signal: AbortSignal,
	isConfirmedHere: boolean,
): Promise<Rollback | undefined> {
	const places = placesIn(config.stateDir);
	for (;;) {
		const undone = await readJson<Rollback>(places.rollback);
		if (undone) return undone;
		if ((await exists(places.passed)) && (!isConfirmedHere || (await confirmPending(config)))) return undefined;
		// Who renames the file first has decided; if it is simply gone, somebody has taken the rules away.
		if (!(await exists(places.pending))) {
			if (await exists(places.confirmed)) return undefined;
			if (!(await exists(places.undone)))
				return {at: clock.now().toISOString(), reason: 'somebody has taken the rules away meanwhile', rule: undefined};
		}
		await clock.sleep(50, signal);
	}
}

/** A guardian that is not there by then will not come. */
const armedWithinMs = 20_000;

/**
 * Starts the guardian and waits until it says that it is there. It belongs to no shell and no service: a session of its
 * own, or where systemd runs and we are root a unit of its own, as systemd ends whatever else a stopping service has
 * started.
 * @param command - this program, up to its subcommand
 * @throws AgentError `capture.not_ready`, nothing having been changed
 */
export async function armGuardian(
	stateDir: string,
	pending: Pending,
	command: readonly string[],
	clock: Clock,
): Promise<void> {
	const places = placesIn(stateDir);
	await mkdir(stateDir, {recursive: true, mode: 0o700});
	for (const path of [places.armed, places.loaded, places.passed, places.rollback, places.confirmed, places.undone])
		await rm(path, {force: true});
	await writeJson(places.pending, pending);
	// The file is in the end only a file; what it goes back to is told past it.
	const guardian = [...command, 'capture', 'guardian', stateDir, pending.previous?.digest ?? 'none'];
	if (!(await startAsUnit(guardian, pending.id))) await startInSession(guardian, places.guardianLog);
	const deadlineMs = clock.monotonicMs() + armedWithinMs;
	while (!(await exists(places.armed))) {
		if (clock.monotonicMs() > deadlineMs)
			return giveUp(places.pending, await readFile(places.guardianLog, 'utf8').catch(() => 'it said nothing'));
		await clock.sleep(20);
	}
}

/** @returns false where there is no systemd, or it does not do this for us */
async function startAsUnit(guardian: readonly string[], id: string): Promise<boolean> {
	if (process.geteuid!() !== 0 || !(await exists('/run/systemd/system')) || findProgram('systemd-run') === undefined)
		return false;
	const lockFile = process.env['XTABLES_LOCKFILE'];
	const {code} = await runProgram('systemd-run', [
		...['--quiet', '--collect', '--no-block', `--unit=onramp-capture-guardian-${id}`],
		...(lockFile ? [`--setenv=XTABLES_LOCKFILE=${lockFile}`] : []),
		'--',
		...guardian,
	]);
	return code === 0;
}

async function startInSession(guardian: readonly string[], logPath: string): Promise<void> {
	// Made anew, so that no link in its place is followed.
	await rm(logPath, {force: true});
	const log = await open(logPath, 'wx', 0o600);
	const child = spawn(guardian[0]!, guardian.slice(1), {detached: true, stdio: ['ignore', log.fd, log.fd], cwd: '/'});
	child.on('error', () => {}); // then it never says that it is there
	child.unref();
	await log.close();
}

async function giveUp(pendingPath: string, said: string): Promise<never> {
	await rm(pendingPath, {force: true});
	throw new AgentError('capture.not_ready', `apply with --confirm: what would undo the change did not start: ${said}`, {
		hint: 'nothing was changed; apply without --confirm only where you can reach this machine by other means',
	});
}
