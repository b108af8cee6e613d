import {mkdir, stat} from 'node:fs/promises';
import {dirname, resolve} from 'node:path';
import {isDeepStrictEqual} from 'node:util';
import {
	type FileReader,
	type KeptSettings,
	keptPathOf,
	type LoadedConfig,
	ownBundle,
	parseKept,
	renderKept,
	settings,
} from '../../config/index.ts';
import {AgentError, reasonOf} from '../../errors.ts';
import type {Flags} from '../index.ts';
import {replaceFile} from './bundle-files.ts';

/** The settings that `join` leaves for the agent to find. */
export interface KeptFlags {
	readonly path: string;
	/** The file as it will be; undefined when it stays as it is. */
	readonly content: string | undefined;
	/** Keys that are new or different, and those of an earlier `join` that stay. */
	readonly changed: readonly string[];
	readonly inherited: readonly string[];
}

const maxBytes = 2 ** 20;

/**
 * Flags over what an earlier `join` was given; `join` without flags keeps all of that, so that a fresh bundle needs no
 * flags repeated.
 * @param target - where the bundle will be
 * @throws AgentError `config.invalid` when the file of an earlier `join` cannot be read
 */
export function planKeptFlags(flags: Flags, configPath: string, target: string, files: FileReader): KeptFlags {
	const path = keptPathOf(configPath);
	const before = parseKept(path, files.read(path, maxBytes));
	const after = new Map(before);
	for (const {flag, key, type, isFileAllowed} of settings) {
		const given = flags[flag];
		if (given === undefined || !isFileAllowed || key === 'bundle') continue;
		// Relative to where the person stands, which the agent does not know.
		after.set(key, type === 'path' ? resolve(String(given)) : String(given));
	}
	if (target === ownBundle) after.delete('bundle');
	else after.set('bundle', target);
	const keys = [...new Set([...after.keys(), ...before.keys()])];
	const changed = keys.filter(key => !isDeepStrictEqual(before.get(key), after.get(key)));
	return {
		path,
		content: changed.length > 0 ? renderKept(after as KeptSettings) : undefined,
		changed,
		inherited: [...before.keys()].filter(key => !changed.includes(key)),
	};
}

/** @throws AgentError `config.unreadable` */
export async function keepFlags({path, content}: KeptFlags): Promise<void> {
	if (content === undefined) return;
	try {
		const directory = dirname(path);
		await mkdir(directory, {recursive: true, mode: 0o755});
		const {gid} = await stat(directory);
		await replaceFile(path, content, 0o640, gid);
	} catch (cause) {
		throw new AgentError('config.unreadable', `keep settings in ${path}: ${reasonOf(cause)}`, {
			cause,
			hint: 'run it as root, or name another file with --config',
		});
	}
}

/**
 * A service has neither the environment nor the flags of this command, and onramp.yaml counts more than what `join`
 * keeps. What it would see differently is refused rather than lost.
 * @throws AgentError `config.invalid` naming each setting
 */
export function refuseWhatServiceIgnores(wanted: LoadedConfig, ofService: LoadedConfig): void {
	const lost = [...wanted.origins].filter(
		([leaf]) => !isDeepStrictEqual(at(wanted.config, leaf), at(ofService.config, leaf)),
	);
	// What follows from another setting is told with that one.
	const set = lost.filter(([, {kind}]) => kind === 'flag' || kind === 'environment');
	if (set.length === 0) return;
	const lines = set.map(([leaf, {place}]) => {
		const other = ofService.origins.get(leaf);
		const instead = other && other.kind !== 'default' ? other.place : 'the default';
		return `\n  ${place}: the service would not see it; for ${leaf} it has ${instead}`;
	});
	throw new AgentError('config.invalid', `join: the service has a configuration of its own${lines.join('')}`, {
		hint: 'write it into /etc/onramp/onramp.yaml, or leave it out; nothing was changed',
	});
}

const at = (value: unknown, leaf: string): unknown => {
	let rest: unknown = value;
	// Keys of maps hold dots themselves, so the longest name that is there is taken first.
	for (let path = leaf.split('.'); path.length > 0; ) {
		if (typeof rest !== 'object' || rest === null) return undefined;
		let length = path.length;
		while (length > 1 && !Object.hasOwn(rest, path.slice(0, length).join('.'))) length--;
		rest = (rest as Record<string, unknown>)[path.slice(0, length).join('.')];
		path = path.slice(length);
	}
	return rest;
};
