import {join, resolve} from 'node:path';
import {reasonOf} from '../errors.ts';
import {type Environment, environmentLayer, flagLayer, type Layer, type ParsedFlags} from './layers.ts';
import {keptPathOf, ownBundle, ownFileLayer} from './load.ts';
import {Findings} from './problems.ts';
import type {FileReader} from './reader.ts';
import {table} from './settings.ts';
import {maxFileBytes} from './text-file.ts';

export interface LookUpInput {
	readonly argv: ParsedFlags;
	readonly env: Environment;
	readonly files: FileReader;
	readonly cwd: string;
}

export interface FoundPath {
	readonly path: string;
	/** What sent us there: `--run-dir`, `/etc/onramp/onramp.yaml:3`, `default`. */
	readonly place: string;
	/** Why a file was not heard, if one was not. */
	readonly unheard: readonly string[];
}

/**
 * Where an agent with this command line would listen, though it might not start: a configuration that is broken must
 * not keep anyone from asking the agent that runs with the earlier one. Never throws.
 */
export function findControlSocket(input: LookUpInput): FoundPath {
	const {find, unheard} = lookUp(input);
	const socket = find(table.controlSocket);
	if (socket) return {...socket, unheard};
	const runDir = find(table.runDir) ?? {path: table.runDir.default, place: 'default'};
	return {path: join(runDir.path, 'control.sock'), place: runDir.place, unheard};
}

/** Where the bundle is read from, and so where a new one has to go. Never throws. */
export function findBundleDirectory(input: LookUpInput): FoundPath {
	const {find, unheard} = lookUp(input);
	return {...(find(table.bundle) ?? {path: ownBundle, place: 'default'}), unheard};
}

type PathSetting = typeof table.controlSocket | typeof table.runDir | typeof table.config | typeof table.bundle;

function lookUp({argv, env, files, cwd}: LookUpInput) {
	const unheard: string[] = [];
	const layers: Layer[] = [flagLayer(argv, cwd), environmentLayer(env, cwd)];
	const find = (setting: PathSetting) => {
		for (const layer of layers) {
			const found = layer(setting);
			if (found && typeof found.raw === 'string' && found.raw !== '')
				return {path: resolve(found.base, found.raw), place: found.place};
		}
		return undefined;
	};
	const configPath = find(table.config)?.path ?? table.config.default;
	for (const path of [configPath, keptPathOf(configPath)]) {
		try {
			const findings = new Findings();
			const bytes = files.read(path, maxFileBytes);
			if (bytes) layers.push(...ownFileLayer({path, bytes}, findings));
			unheard.push(...findings.problems.slice(0, 1).map(({place, message}) => `${place}: ${message}`));
		} catch (error) {
			unheard.push(`${path}: ${reasonOf(error)}`);
		}
	}
	return {find, unheard};
}
