import {readFileSync} from 'node:fs';
import {systemCode} from '../errors.ts';
import {writePrivateFile} from './private-file.ts';

/** What one agent leaves for the next about the Envoy it runs. Written atomically, 0600. */
export interface ProcessRecord {
	/** Undefined between two Envoys. */
	readonly process?: RecordedProcess | undefined;
	/** Started beside it, to take its place; not there yet. */
	readonly successor?: RecordedProcess | undefined;
	/** Its place has been taken; it serves what it has to the end. */
	readonly retiring?: RecordedProcess | undefined;
	/** The file it was started from, see `checkBinary`. */
	readonly binary: string;
	/** Optional flags that this file refused. */
	readonly refusedFlags: readonly string[];
}

export interface RecordedProcess {
	readonly pid: number;
	readonly startTime: number;
	readonly bootId: string;
	readonly exe: string;
	readonly argv: string[];
	readonly adminSocket: string;
	readonly bootstrapHash: string;
	readonly startedAt: string;
}

/** Undefined when there is none, or none that can be read: then there is nothing to adopt by it. */
export function loadRecord(path: string): ProcessRecord | undefined {
	try {
		return parseRecord(JSON.parse(readFileSync(path, 'utf8')));
	} catch (error) {
		if (error instanceof SyntaxError || systemCode(error) === 'ENOENT') return undefined;
		throw error;
	}
}

export function saveRecord(path: string, record: ProcessRecord): void {
	writePrivateFile(path, `${JSON.stringify(record, null, '\t')}\n`);
}

const isString = (value: unknown): value is string => typeof value === 'string';
const isStrings = (value: unknown): value is string[] => Array.isArray(value) && value.every(isString);
const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null;

/** Another release may have written it, so the shape is checked; undefined when it is not ours. */
function parseRecord(value: unknown): ProcessRecord | undefined {
	if (!isObject(value)) return undefined;
	const {process: running, successor, retiring, binary, refusedFlags} = value;
	if (!isString(binary) || !isStrings(refusedFlags)) return undefined;
	const processes = Object.entries({process: running, successor, retiring}).filter(([, each]) => each !== undefined);
	if (!processes.every(([, each]) => isRecordedProcess(each))) return undefined;
	return {...Object.fromEntries(processes), binary, refusedFlags};
}

function isRecordedProcess(value: unknown): value is RecordedProcess {
	if (!isObject(value)) return false;
	const {pid, startTime, argv, bootId, exe, adminSocket, bootstrapHash, startedAt} = value;
	return (
		Number.isSafeInteger(pid) &&
		(pid as number) > 0 &&
		typeof startTime === 'number' &&
		isStrings(argv) &&
		[bootId, exe, adminSocket, bootstrapHash, startedAt].every(isString)
	);
}
