// Builds packages of what is in dist/: onramp (the agent with the Node that runs it, units, man page, completion) and
// onramp-envoy, from one description, as deb and rpm, with a bill of materials and checksums. Called by scripts/package.
//   --format deb,rpm   --package onramp,onramp-envoy   --out dist/packages   --arch x64,arm64 (default: this machine's)
//   --maintainer 'NAME <ADDRESS>'   --homepage URL: of who publishes them
//   --config FILE      settings to ship as /etc/onramp/onramp.yaml, other than packaging/onramp.yaml
//   --fast             compresses little, and --version X gives another version: for tests
import {createHash} from 'node:crypto';
import {mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {join, resolve} from 'node:path';
import {parseArgs} from 'node:util';
import {ensureEnvoy} from './fetch-envoy.ts';
import {describePackages} from './packages/describe.ts';
import {ensureNfpm} from './packages/fetch-nfpm.ts';
import {ensureNpmPackage} from './packages/fetch-npm.ts';
import {runNfpm} from './packages/nfpm.ts';
import {renderSbom} from './packages/sbom.ts';
import {koffiPackage, nodePackage, stageAgent, stageEnvoy} from './packages/stage.ts';

const {values} = parseArgs({
	options: {
		format: {type: 'string', default: 'deb,rpm'},
		package: {type: 'string', default: 'onramp,onramp-envoy'},
		out: {type: 'string', default: 'dist/packages'},
		fast: {type: 'boolean', default: false},
		version: {type: 'string'},
		arch: {type: 'string', default: process.arch},
		config: {type: 'string', default: 'packaging/onramp.yaml'},
		maintainer: {type: 'string'},
		homepage: {type: 'string'},
	},
});

const say = (line: string): void => console.error(line);
const out = resolve(values.out);
// Modes of files are those of the package, not of who builds it.
process.umask(0o022);
const names = values.package.split(',');
mkdirSync(out, {recursive: true});
const work = mkdtempSync(join(out, '.work-'));
try {
	const nfpm = await ensureNfpm(say);
	const descriptions = describePackages(values).filter(({name}) => names.includes(name));
	for (const arch of values.arch.split(',')) {
		for (const description of descriptions) {
			const root = join(work, `${description.name}-${arch}`);
			if (description.name === 'onramp') {
				const folders = new Map<string, string>();
				for (const name of [nodePackage(arch), koffiPackage(arch)])
					folders.set(name, await ensureNpmPackage(name, say));
				const folderOf = (name: string): string => folders.get(name)!;
				stageAgent(root, {description, arch, configPath: values.config, folderOf});
			} else stageEnvoy(root, description, await ensureEnvoy(say, arch));
			for (const format of values.format.split(',') as ('deb' | 'rpm')[])
				console.log(await runNfpm(nfpm, {description, format, arch, root, out, isFast: values.fast}));
		}
		writeFileSync(join(out, `onramp-${arch}.cdx.json`), renderSbom(arch));
	}
	const files = readdirSync(out).filter(name => /\.(deb|rpm|json)$/.test(name));
	const sums = files.toSorted().map(name => `${sha256(join(out, name))}  ${name}\n`);
	writeFileSync(join(out, 'SHA256SUMS'), sums.join(''));
} finally {
	rmSync(work, {recursive: true, force: true});
}

function sha256(path: string): string {
	return createHash('sha256').update(readFileSync(path)).digest('hex');
}
