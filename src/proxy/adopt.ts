import {createHash} from 'node:crypto';
import {existsSync, readFileSync} from 'node:fs';
import {reasonOf} from '../errors.ts';
import type {Clock} from '../lifecycle/index.ts';
import type {AdminClient, ServerInfo} from './admin.ts';
import {bootId, findByArguments, identify, type ProcessIdentity} from './linux-process.ts';
import type {ProcessRecord, RecordedProcess} from './record.ts';

/** What an Envoy must have been started with for us to go on with it. */
export interface Wanted {
	readonly binaryPath: string;
	/** Of the file at `binaryPath` now, see `checkBinary`. */
	readonly binary: string;
	/** Any of these. */
	readonly commandLines: readonly (readonly string[])[];
	readonly bootstrapHash: string;
	readonly bootstrapPath: string;
	readonly adminSocketPath: string;
}

/** An Envoy that an earlier agent left running, and why it cannot be kept (undefined: it can). */
export interface Leftover {
	readonly identity: ProcessIdentity;
	readonly version: string | undefined;
	readonly mismatch: string | undefined;
	/** Whether it is up and open to everybody all the same, so that it may go on until there is a better one. */
	readonly isServing: boolean;
}

/** An agent that comes back at once may find its Envoy still opening the admin socket. */
const answerWithinMs = 3000;

export function hashOf(content: string): string {
	return createHash('sha256').update(content).digest('hex');
}

/**
 * Looks for an Envoy left by an earlier agent: by its record, or, where the record is missing (killed before it was
 * written, disk full), by its command line. Processes are compared by start time, boot, executable and command line.
 */
export async function findLeftover(
	record: ProcessRecord | undefined,
	wanted: Wanted,
	{admin, clock}: {admin: Pick<AdminClient, 'serverInfo'>; clock: Clock},
	signal: AbortSignal,
): Promise<Leftover | undefined> {
	const recorded = findRecorded(record);
	// Looking through all processes is spared a first start, which has no admin socket yet.
	const identity =
		recorded ??
		(existsSync(wanted.adminSocketPath) ? wanted.commandLines.flatMap(args => findByArguments(args)) : []).find(
			// It says that it is LIVE until its end, and closes its listeners before that.
			found => !isRecorded(record?.retiring, found),
		);
	if (identity === undefined) return undefined;
	const startedWith = recorded
		? {
				hash: record!.process!.bootstrapHash,
				binary: record!.binary,
				admin: record!.process!.adminSocket,
			}
		: {hash: hashOfFile(wanted.bootstrapPath), binary: wanted.binary, admin: wanted.adminSocketPath};
	const mismatch = firstMismatch([
		['the envoy binary was replaced', startedWith.binary === wanted.binary && !identity.exe.endsWith(' (deleted)')],
		['the command line changed', wanted.commandLines.some(args => endsWith(identity.argv, args))],
		['the bootstrap changed', startedWith.hash === wanted.bootstrapHash],
		['the admin socket moved', startedWith.admin === wanted.adminSocketPath],
	]);
	// At another place nothing of it can be asked.
	if (startedWith.admin !== wanted.adminSocketPath) return {identity, version: undefined, mismatch, isServing: false};
	const info = await askInfo(admin, clock, signal);
	if (typeof info === 'string') return {identity, version: undefined, mismatch: info, isServing: false};
	const refusal = firstMismatch([
		['another envoy answers on the admin socket', info.configPath === wanted.bootstrapPath],
		// Begun by an agent that did not live to end it, and it cannot be taken back.
		['it drains', info.state !== 'DRAINING'],
	]);
	const isServing = refusal === undefined && info.state === 'LIVE';
	return {identity, version: info.version, mismatch: refusal ?? mismatch, isServing};
}

/** Whether a process is the one that was recorded, and not another with its pid. */
export function isRecorded(recorded: RecordedProcess | undefined, {pid, startTime}: ProcessIdentity): boolean {
	return recorded?.pid === pid && recorded.startTime === startTime && recorded.bootId === bootId();
}

function findRecorded(record: ProcessRecord | undefined): ProcessIdentity | undefined {
	if (record?.process === undefined) return undefined;
	const {pid, exe, argv} = record.process;
	const found = identify(pid);
	if (found === undefined || !isRecorded(record.process, found)) return undefined;
	const isSame = found.exe.replace(/ \(deleted\)$/, '') === exe && found.argv.join('\0') === argv.join('\0');
	return isSame ? found : undefined;
}

/** What it says about itself, or why it cannot be asked. */
async function askInfo(
	admin: Pick<AdminClient, 'serverInfo'>,
	clock: Clock,
	signal: AbortSignal,
): Promise<ServerInfo | string> {
	const startedMs = clock.monotonicMs();
	for (;;) {
		try {
			return await admin.serverInfo();
		} catch (error) {
			if (clock.monotonicMs() - startedMs > answerWithinMs) return `it does not answer: ${reasonOf(error)}`;
			await clock.sleep(50, signal);
		}
	}
}

function firstMismatch(checks: readonly (readonly [string, boolean])[]): string | undefined {
	return checks.find(([, holds]) => !holds)?.[0];
}

/** The arguments stand at the end, behind the binary, or behind an interpreter and a wrapper script. */
function endsWith(argv: readonly string[], args: readonly string[]): boolean {
	return argv.slice(-args.length).join('\0') === args.join('\0');
}

function hashOfFile(path: string): string {
	try {
		return hashOf(readFileSync(path, 'utf8'));
	} catch {
		return ''; // Matches nothing: an Envoy whose bootstrap is not known is not kept.
	}
}
