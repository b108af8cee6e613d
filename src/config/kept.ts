import {stringify} from 'yaml';
import {parseOnrampYaml} from './onramp-yaml.ts';
import {FileFindings, Findings} from './problems.ts';
import {settings} from './settings.ts';
import {decodeText} from './text-file.ts';
import type {Raw} from './values.ts';

/** Settings by dotted key, as `join` keeps them. */
export type KeptSettings = ReadonlyMap<string, Raw>;

const heading = `# Settings that "onramp join" was given; it writes this file anew each time it is given some.
# onramp.yaml beside it counts more. Take out a line to have the default again.
`;

/** join.yaml → settings. @throws AgentError `config.invalid` when it cannot be read */
export function parseKept(path: string, bytes: Uint8Array | undefined): KeptSettings {
	if (!bytes) return new Map();
	const findings = new Findings();
	const ofFile = new FileFindings(path, findings);
	const text = decodeText(bytes, ofFile);
	const entries = text === undefined ? new Map() : parseOnrampYaml(text, settings, ofFile);
	findings.throwIfAny();
	return new Map([...entries].map(([key, {raw}]) => [key, raw]));
}

/** Settings → join.yaml, in the order of the documentation. */
export function renderKept(kept: KeptSettings): string {
	const tree: Record<string, unknown> = {};
	for (const {key} of settings) {
		const raw = kept.get(key);
		if (raw === undefined) continue;
		const path = key.split('.');
		const last = path.pop()!;
		let at = tree;
		for (const name of path) {
			at[name] ??= {};
			at = at[name] as Record<string, unknown>;
		}
		at[last] = raw;
	}
	return `${heading}${Object.keys(tree).length > 0 ? stringify(tree, {lineWidth: 0}) : ''}`;
}
