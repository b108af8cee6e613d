// Builds packages of what is in dist/: onramp (the agent with the Node that runs it, units, man page, completion) and
// onramp-envoy, from one description, as deb and rpm, with a bill of materials and checksums. Called by scripts/package.
//   --format deb,rpm   --package onramp,onramp-envoy   --out dist/packages
//   --fast             compresses little, and --version X gives another version: for tests
import {createHash} from 'node:crypto';
import {mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {join, resolve} from 'node:path';
import {parseArgs} from 'node:util';
import {ensureEnvoy} from './fetch-envoy.ts';
import {describePackages, type PackageDescription} from './packages/describe.ts';
import {ensureNfpm} from './packages/fetch-nfpm.ts';
import {runNfpm} from './packages/nfpm.ts';
import {renderSbom} from './packages/sbom.ts';
import {stageAgent, stageEnvoy} from './packages/stage.ts';

const {values} = parseArgs({
	options: {
		format: {type: 'string', default: 'deb,rpm'},
		package: {type: 'string', default: 'onramp,onramp-envoy'},
		out: {type: 'string', default: 'dist/packages'},
		fast: {type: 'boolean', default: false},
		version: {type: 'string'},
	},
});

const say = (line: string): void => console.error(line);
const out = resolve(values.out);
const names = values.package.split(',');
mkdirSync(out, {recursive: true});
const work = mkdtempSync(join(out, '.work-'));
try {
	const [nfpm, envoyPath] = await Promise.all([ensureNfpm(say), ensureEnvoy(say)]);
	const stages = {
		onramp: stageAgent,
		'onramp-envoy': (root: string, description: PackageDescription) => stageEnvoy(root, description, envoyPath),
	};
	for (const description of describePackages(values.version)) {
		if (!names.includes(description.name)) continue;
		stages[description.name](join(work, description.name), description);
		for (const format of values.format.split(',') as ('deb' | 'rpm')[]) {
			const path = await runNfpm(nfpm, {
				description,
				format,
				root: join(work, description.name),
				out,
				isFast: values.fast,
			});
			console.log(path);
		}
	}
	writeFileSync(join(out, 'onramp.cdx.json'), renderSbom());
	const files = readdirSync(out).filter(name => /\.(deb|rpm|json)$/.test(name));
	const sums = files.toSorted().map(name => `${sha256(join(out, name))}  ${name}\n`);
	writeFileSync(join(out, 'SHA256SUMS'), sums.join(''));
} finally {
	rmSync(work, {recursive: true, force: true});
}

function sha256(path: string): string {
	return createHash('sha256').update(readFileSync(path)).digest('hex');
}
