import {settings} from '../config/settings.ts';

/**
 * Flags of a command line `run --FLAG VALUE …` in which every flag is a setting, given once, with a value it may have
 * (`true` for a boolean that is only named).
 * undefined for any other, `--help` and mistakes included: those are for the real parser. A service needs no more than
 * this, and loading the parser would be a fifth of the time to Envoy's start.
 */
export function parsePlainRun([command, ...words]: readonly string[]): Record<string, string> | undefined {
	if (command !== 'run') return undefined;
	const flags: Record<string, string> = {};
	for (let i = 0; i < words.length; i++) {
		const [, flag, given] = /^--([a-z0-9-]+)(?:=(.+))?$/s.exec(words[i]!) ?? [];
		const setting = settings.find(each => each.flag === flag);
		if (flag === undefined || !setting || flag in flags) return undefined;
		const next = words[i + 1];
		const isOnlyNamed = given === undefined && (next === undefined || next.startsWith('-'));
		if (isOnlyNamed && setting.type !== 'boolean') return undefined;
		const value = given ?? (isOnlyNamed ? 'true' : words[++i]);
		if (!value) return undefined;
		if (setting.choices && !setting.choices.includes(value)) return undefined;
		flags[flag] = value;
	}
	return flags;
}
