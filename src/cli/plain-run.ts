import {settings} from '../config/settings.ts';

/** Flags of one command beside the settings, by name: a switch, one with a value, or one with these values. */
export type PlainFlags = Readonly<Record<string, 'boolean' | 'value' | readonly string[]>>;

/**
 * The words after a command `--FLAG VALUE …` in which every flag is a setting or one of the command's own, given once,
 * with a value it may have (`true` for a boolean setting that is only named). undefined for any other, `--help` and
 * mistakes included: those are for the real parser. A service needs no more than this, and loading the parser would be
 * a fifth of the time to Envoy's start.
 */
export function parsePlainFlags(
	words: readonly string[],
	own: PlainFlags = {},
): Record<string, string | boolean> | undefined {
	const flags: Record<string, string | boolean> = {};
	for (let i = 0; i < words.length; i++) {
		const [, flag, given] = /^--([a-z0-9-]+)(?:=(.+))?$/s.exec(words[i]!) ?? [];
		if (flag === undefined || flag in flags) return undefined;
		const setting = settings.find(each => each.flag === flag);
		const kind = Object.hasOwn(own, flag) ? own[flag]! : setting && (setting.choices ?? 'value');
		if (kind === undefined) return undefined;
		const next = words[i + 1];
		const isOnlyNamed = given === undefined && (next === undefined || next.startsWith('-'));
		if (kind === 'boolean') {
			if (!isOnlyNamed) return undefined;
			flags[flag] = true;
			continue;
		}
		if (isOnlyNamed && setting?.type !== 'boolean') return undefined;
		const value = given ?? (isOnlyNamed ? 'true' : words[++i]);
		if (!value) return undefined;
		if (kind !== 'value' && !kind.includes(value)) return undefined;
		flags[flag] = value;
	}
	return flags;
}
