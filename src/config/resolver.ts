import type {Found, Layer, Variable, Variables} from './layers.ts';
import {type Findings, show} from './problems.ts';
import type {Setting, SettingWithDefault} from './settings.ts';
import type {Origin} from './types.ts';
import {type Raw, ValueError, type ValueType} from './values.ts';

export interface Resolved<T> {
	readonly value: T;
	readonly origin: Origin;
	readonly place: string;
	/** Said by one of Istio's variables or files rather than by a setting of ours. */
	readonly isIstio: boolean;
}

export const byDefault: Origin = {kind: 'default', place: 'default'};

/** Settings whose text may hold a credential; a refused one is not shown. */
const unshown = new Set([
	'control-plane.xds-headers',
	'control-plane.ca-headers',
	'workload.metadata',
	'health.probes',
]);

/** Finds each setting in the first layer that has it, and keeps the origin of every leaf of Config. */
export class Resolver {
	readonly origins = new Map<string, Origin>();
	readonly findings: Findings;
	readonly #layers: readonly Layer[];
	readonly #variables: readonly Variables[];
	#directories: Readonly<Record<string, string>> = {};

	/** @param variables - Istio's, first of the process, then of the bundle */
	constructor(layers: readonly Layer[], variables: readonly Variables[], findings: Findings) {
		this.#layers = layers;
		this.#variables = variables;
		this.findings = findings;
	}

	/** Gives `{state-dir}` and `{run-dir}` in defaults a meaning. */
	useDirectories(directories: Readonly<Record<'state-dir' | 'run-dir', string>>): void {
		this.#directories = directories;
	}

	/** The value, or its default. A value that cannot be used is a problem, and the default stands in for it. */
	take<T>(setting: SettingWithDefault<T>): T {
		const found = this.optional(setting);
		if (found) return found.value;
		this.note(setting.leaf, byDefault);
		const text = setting.default.replace(/\{([a-z-]+)\}/g, (_, name: string) => this.#directories[name] ?? '');
		// The default sits under a directory that somebody has set, so it can be refused too (a long socket path).
		return this.#parse(
			setting.value,
			{raw: text, origin: byDefault, place: `default of ${setting.key}`, base: '/', isIstio: false},
			setting,
		) as T;
	}

	/** The value with its origin, or undefined when no source has it or it cannot be used. */
	optional<T>(setting: Setting<T>): Resolved<T> | undefined {
		const found = this.find(setting);
		if (!found) return undefined;
		const value = this.#parse(setting.value, found, setting);
		if (value === undefined) return undefined;
		this.note(setting.leaf, found.origin);
		return {value, origin: found.origin, place: found.place, isIstio: found.isIstio};
	}

	/** As optional; without a value the fallback stands, which comes from the host or from other settings. */
	orElse<T>(setting: Setting<T>, value: T, origin: Origin): Resolved<T> {
		const found = this.optional(setting);
		if (found) return found;
		this.note(setting.leaf, origin);
		return {value, origin, place: origin.place, isIstio: false};
	}

	find(setting: Setting): Found | undefined {
		for (const layer of this.#layers) {
			const found = layer(setting);
			if (found) return found;
		}
		return undefined;
	}

	/** A variable of Istio's that no setting stands for. */
	variable(name: string): Variable | undefined {
		return this.#variables.map(variables => variables.get(name)).find(variable => variable !== undefined);
	}

	/** Every variable that begins with the prefix, by what follows it. */
	variables(prefix: string): Map<string, Variable> {
		const found = new Map<string, Variable>();
		for (const variables of this.#variables.toReversed())
			for (const [name, variable] of variables)
				if (name.startsWith(prefix)) found.set(name.slice(prefix.length), variable);
		return new Map([...found].toSorted(([left], [right]) => (left < right ? -1 : 1)));
	}

	note(leaf: string, origin: Origin): void {
		this.origins.set(leaf, origin);
	}

	#parse<T>(type: ValueType<T>, found: Found, setting: Setting<T>): T | undefined {
		try {
			return type.parse(found.raw, found.base);
		} catch (error) {
			if (!(error instanceof ValueError)) throw error;
			const seen = unshown.has(setting.key) ? '' : ` ${describe(found.raw)}`;
			this.findings.problem(found.place, `${setting.key}${seen} ${error.message}`, `give ${type.accepts}`);
			return undefined;
		}
	}
}

const describe = (raw: Raw): string => show(typeof raw === 'string' ? raw : JSON.stringify(raw));
