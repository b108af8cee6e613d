import {readdirSync, readFileSync, rmSync, statSync} from 'node:fs';
import {basename, dirname, join} from 'node:path';
import type {ProxyConfig} from '../config/types.ts';
import {hashOf} from './adopt.ts';
import {type ArgumentsInput, renderArguments} from './arguments.ts';
import {checkBinary} from './binary.ts';
import {errorLogPath, lastErrorLogPath} from './log-file.ts';
import {writePrivateFile} from './private-file.ts';
import type {Slot} from './slot.ts';

/** How an Envoy is to be started by its unit. */
export interface UnitStart {
	/** Its name holds a hash of all that matters, so Envoy itself can say what it was started with. */
	readonly bootstrapPath: string;
	/** What the unit's shell runs. */
	readonly script: string;
}

export interface UnitStartInput extends ArgumentsInput {
	readonly config: ArgumentsInput['config'] & Pick<ProxyConfig, 'binaryPath'>;
	readonly bootstrap: string;
	/** Waited before Envoy is started, so that one that ends again and again does not keep the machine busy. */
	readonly delaySeconds: number;
}

/** Pure. */
export function renderUnitStart(input: UnitStartInput): UnitStart {
	const {config, bootstrap, delaySeconds} = input;
	const argumentsFor = (bootstrapPath: string): string[] =>
		renderArguments({...input, config: {...config, bootstrapPath}});
	const digest = hashOf(JSON.stringify([config.binaryPath, argumentsFor(''), bootstrap])).slice(0, 16);
	const bootstrapPath = `${config.bootstrapPath.replace(/\.json$/, '')}-${digest}.json`;
	const errorLog = quote(errorLogPath(config.logPath));
	const lastErrorLog = quote(lastErrorLogPath(config.logPath));
	const script = [
		'# Written by the onramp agent for its unit of Envoy.',
		// By the time the agent asks why one has ended, the next may have started.
		`mv -f ${errorLog} ${lastErrorLog} 2>/dev/null`,
		// A disk that cannot be written is no reason to be without Envoy.
		`{ : >${errorLog}; } 2>/dev/null && exec >>${errorLog} 2>&1`,
		`{ echo $$ >${quote(startedPath(config))}; } 2>/dev/null`,
		...(delaySeconds === 0 ? [] : [`sleep ${delaySeconds}`]),
		`exec ${[config.binaryPath, ...argumentsFor(bootstrapPath)].map(quote).join(' ')}`,
		'',
	].join('\n');
	return {bootstrapPath, script};
}

export const unitOf = ({name}: Pick<Slot, 'name'>): string => `onramp-envoy@${name}.service`;

/** The path that the unit knows. While it is there, the unit keeps an Envoy running. */
export const unitScriptPath = ({name, config}: UnitSlot): string =>
	join(dirname(config.bootstrapPath), `start-${name}`);

/** Where the unit is concerned. */
export interface UnitSlot extends Pick<Slot, 'name'> {
	readonly config: Pick<ProxyConfig, 'bootstrapPath' | 'binaryPath'>;
}

const startedPath = (config: Pick<ProxyConfig, 'bootstrapPath'>): string =>
	`${config.bootstrapPath.replace(/\.json$/, '')}.started`;

/**
 * Changes with each start: the one trace of an Envoy that ends before it has opened its admin socket. Undefined: never
 * started, or not to be told as the disk is full.
 */
export function startMark(config: Pick<ProxyConfig, 'bootstrapPath'>): bigint | undefined {
	return statSync(startedPath(config), {bigint: true, throwIfNoEntry: false})?.mtimeNs;
}

/**
 * Puts the files where the unit finds them; the script last, as writing it is what has Envoy started the first time.
 * Files that are there already are left alone.
 */
export function writeUnitStart(slot: UnitSlot & Pick<Slot, 'bootstrap'>, {bootstrapPath, script}: UnitStart): void {
	const {config, bootstrap} = slot;
	checkBinary(config.binaryPath);
	if (readOptional(bootstrapPath) !== bootstrap) writePrivateFile(bootstrapPath, bootstrap);
	const scriptPath = unitScriptPath(slot);
	if (readOptional(scriptPath) !== script) writePrivateFile(scriptPath, script);
	// The digest, as the name of one slot's is the beginning of the other's.
	const earlier = (name: string): boolean =>
		name.length === basename(bootstrapPath).length && name.startsWith(stemOf(bootstrapPath));
	for (const name of readdirSync(dirname(bootstrapPath)))
		if (earlier(name) && name !== basename(bootstrapPath)) rmSync(join(dirname(bootstrapPath), name));
}

/** Once its Envoy has ended, the unit starts no other. */
export function withdrawUnitStart(slot: UnitSlot): void {
	rmSync(unitScriptPath(slot), {force: true});
}

/** `bootstrap-b-0123456789abcdef.json` → `bootstrap-b-` */
const stemOf = (bootstrapPath: string): string => basename(bootstrapPath).replace(/[0-9a-f]{16}\.json$/, '');

const quote = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

function readOptional(path: string): string | undefined {
	try {
		return readFileSync(path, 'utf8');
	} catch {
		return undefined; // Writing it tells what is wrong.
	}
}
