import {join} from 'node:path';
import {type MeshSource, originOf} from './layers.ts';
import {parseProbe} from './probe.ts';
import {byDefault, type Resolver} from './resolver.ts';
import {table} from './settings.ts';
import type {HealthConfig, ProbeConfig} from './types.ts';
import {ValueError} from './values.ts';

/** @param configs - mesh.yaml and PROXY_CONFIG, the latter first; istioctl puts the WorkloadGroup's probe there */
export function readHealth(
	resolver: Resolver,
	configs: readonly MeshSource[],
	hasEntry: boolean,
	stateDir: string,
): HealthConfig {
	const mode = resolver.take(table.healthMode);
	const probes = mode === 'off' ? [] : readProbes(resolver, configs);
	resolver.note('health.isReported', resolver.origins.get(table.healthProbes.leaf) ?? byDefault);
	resolver.note('health.stateDir', resolver.origins.get(table.stateDir.leaf) ?? byDefault);
	return {
		mode,
		isReported: hasEntry && mode !== 'off' && (mode !== 'auto' || probes.length > 0),
		probes,
		defaultHost: resolver.take(table.healthDefaultHost),
		reassertMs: resolver.take(table.healthReassert),
		stateDir: join(stateDir, 'health'),
	};
}

function readProbes(resolver: Resolver, configs: readonly MeshSource[]): readonly ProbeConfig[] {
	const own = resolver.optional(table.healthProbes);
	if (own || resolver.find(table.healthProbes)) return own?.value ?? [];
	const source = configs.find(({parsed}) => 'readinessProbe' in parsed.fields);
	resolver.note(table.healthProbes.leaf, source ? originOf(source, 'readinessProbe') : byDefault);
	if (!source) return [];
	try {
		return [parseProbe('readinessProbe', source.parsed.fields['readinessProbe'])];
	} catch (error) {
		if (!(error instanceof ValueError)) throw error;
		resolver.findings.problem(
			`${source.path}:${source.parsed.lines.get('readinessProbe')}`,
			`readinessProbe ${error.message}`,
			'mend the probe of the WorkloadGroup and make the bundle anew, or set health.probes',
		);
		return [];
	}
}
