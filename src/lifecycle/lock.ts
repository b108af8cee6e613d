import {readdirSync, readFileSync} from 'node:fs';
import {readFile} from 'node:fs/promises';
import {basename, dirname} from 'node:path';
import {AgentError, systemCode} from '../errors.ts';
import {systemFs, temporaryName, writeFileAtomic, writeNewFile} from './atomic-file.ts';

export interface Lock {
	/** Lets the next one in, at the latest when this process ends. Never rejects; safe to call again. */
	release(): Promise<void>;
	/** Who had it before and died without releasing it, as `processMark` has it: what it has started may still run. */
	readonly diedHolding: string | undefined;
}

/** Who holds a lock; pids are reused, so the start time and the boot make it one process. */
interface Holder {
	readonly pid: number;
	/** Clock ticks since boot, field 22 of /proc/PID/stat. */
	readonly startTime: string;
	readonly bootId: string;
	readonly isReleased: boolean;
}

/**
 * Takes a lock that the death of its holder frees, even by SIGKILL or power cut.
 *
 * The lock is a series of files `PATH.N`; the one with the highest N counts. A dead holder's file is never removed to
 * be made anew, since two who find it dead could each remove the other's: the successor creates `PATH.N+1`, which
 * link(2) lets exactly one do, with its content already complete. For the same reason a release marks the file and
 * leaves it, so that numbers never start over.
 *
 * Processes that share the directory but not the PID namespace do not see each other and are taken for dead; a
 * container that was killed and made anew must be able to go on.
 * @throws AgentError identity.state_locked naming the holder; system errors (EACCES, EROFS, ENOSPC, …) as they are
 */
export async function acquireLock(path: string): Promise<Lock> {
	const self = describeSelf();
	const temporary = `${dirname(path)}/${temporaryName()}`;
	try {
		// On a full disk it may be there without its content.
		// Its holder does not outlive a power cut either.
		await writeNewFile(temporary, render(self), 0o600, systemFs, false);
		for (;;) {
			const last = lockNumbers(path).at(-1) ?? 0;
			const before = last > 0 ? await refuseIfHeld(path, last) : undefined;
			if (!(await linkNew(temporary, `${path}.${last + 1}`))) continue; // another successor was faster: look again
			// A directory listing taken while files come and go may miss one; ours counts only if it is the highest.
			if (lockNumbers(path).at(-1) !== last + 1) {
				await systemFs.rm(`${path}.${last + 1}`, {force: true});
				continue;
			}
			await removeOlder(path, last + 1);
			return lockOn(`${path}.${last + 1}`, self, before);
		}
	} finally {
		await systemFs.rm(temporary, {force: true});
	}
}

function lockOn(file: string, self: Holder, before: Holder | undefined): Lock {
	let released: Promise<void> | undefined;
	return {
		diedHolding: before && !before.isReleased && before.bootId === self.bootId ? markOf(before) : undefined,
		release: () => {
			// On a full disk the mark cannot be made; the end of the process then releases it as well, and so does a power cut.
			released ??= writeFileAtomic(file, render({...self, isReleased: true}), 0o600, systemFs, false).catch(() => {});
			return released;
		},
	};
}

/** @returns who had it last */
async function refuseIfHeld(path: string, number: number): Promise<Holder | undefined> {
	const holder = await readHolder(`${path}.${number}`);
	if (!holder || !isAlive(holder)) return holder;
	const whose = holder.pid === process.pid ? 'this process' : `the process with pid ${holder.pid}`;
	throw new AgentError('identity.state_locked', `lock ${path}: held by ${whose}`, {
		hint: `another agent uses ${dirname(path)}: stop it (\`ps -fp ${holder.pid}\` shows it), or give this one its own state directory`,
		fields: {pid: holder.pid},
	});
}

/** Undefined when it is gone or, as after a power cut, not what was written: either way nobody alive holds it. */
async function readHolder(file: string): Promise<Holder | undefined> {
	let text: string;
	try {
		text = await readFile(file, 'utf8');
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return undefined;
		throw error;
	}
	try {
		const {pid, startTime, bootId, isReleased} = JSON.parse(text) as Partial<Holder>;
		if (typeof pid !== 'number' || typeof startTime !== 'string' || typeof bootId !== 'string') return undefined;
		return {pid, startTime, bootId, isReleased: isReleased === true};
	} catch {
		return undefined; // links are made only to complete files, so this one was damaged after its holder's time
	}
}

function isAlive({pid, startTime, bootId, isReleased}: Holder): boolean {
	return !isReleased && bootId === readBootId() && startTimeOf(pid) === startTime;
}

/** Undefined when there is no such process or only its unreaped remains. */
function startTimeOf(pid: number): string | undefined {
	let stat: string;
	try {
		stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
	} catch (error) {
		if (systemCode(error) === 'ENOENT' || systemCode(error) === 'ESRCH') return undefined;
		throw error;
	}
	// The name in parentheses may hold spaces and parentheses itself; fields are counted from its end.
	const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
	return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
}

function readBootId(): string {
	return readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim();
}

function describeSelf(): Holder {
	return {pid: process.pid, startTime: startTimeOf(process.pid)!, bootId: readBootId(), isReleased: false};
}

const markOf = ({pid, startTime}: Holder): string => `${pid}:${startTime}`;

/** `PID:START`, of this process and of no other since the machine booted. */
export const processMark = (): string => (mark ??= markOf(describeSelf()));
let mark: string | undefined;

function render(holder: Holder): string {
	return `${JSON.stringify(holder)}\n`;
}

/** Number of whoever has taken the lock last; 0 = nobody yet. It grows by one each time the lock is taken. */
export const lastLock = (path: string): number => lockNumbers(path).at(-1) ?? 0;

/** Ascending. */
function lockNumbers(path: string): number[] {
	const prefix = `${basename(path)}.`;
	return readdirSync(dirname(path))
		.filter(name => name.startsWith(prefix) && /^[1-9]\d{0,14}$/.test(name.slice(prefix.length)))
		.map(name => Number(name.slice(prefix.length)))
		.sort((a, b) => a - b);
}

async function linkNew(existing: string, path: string): Promise<boolean> {
	try {
		await systemFs.link(existing, path);
		return true;
	} catch (error) {
		if (systemCode(error) === 'EEXIST') return false;
		throw error;
	}
}

async function removeOlder(path: string, number: number): Promise<void> {
	for (const older of lockNumbers(path)) {
		if (older < number) await systemFs.rm(`${path}.${older}`, {force: true});
	}
}
