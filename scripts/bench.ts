// Measures the agent, and with --peer Istio's pilot-agent beside it, on the embedded control plane and a real Envoy.
// See docs/benchmarks.md.
import {execFile} from 'node:child_process';
import {mkdir, mkdtemp} from 'node:fs/promises';
import {cpus, release, tmpdir} from 'node:os';
import {join, resolve} from 'node:path';
import {fileURLToPath} from 'node:url';
import {parseArgs, promisify} from 'node:util';
import {measureBoot} from './bench/boot.ts';
import {measureCapture} from './bench/capture.ts';
import {installCleanUp, removeAtEnd} from './bench/cleanup.ts';
import {measureDns} from './bench/dns.ts';
import {measureFloors} from './bench/floors.ts';
import {measureLatency} from './bench/latency.ts';
import {findPeer} from './bench/peer.ts';
import {measureProgram} from './bench/program.ts';
import {measurePushes, measureStall} from './bench/pushes.ts';
import {measureMemory, measureRenewals} from './bench/resources.ts';
import {figuresOf, type Row, renderRow, renderTable} from './bench/rows.ts';
import type {Bench} from './bench/setup.ts';
import {measureStarts} from './bench/starts.ts';
import {ensureEnvoy} from './fetch-envoy.ts';

const usage = `npm run bench -- [--peer PILOT-AGENT] [--peer-template FILE] [--quick] [--only ROW]... [--json] [--profile DIRECTORY]
  --peer           Istio's pilot-agent, measured in turn on the same control plane and Envoy
  --peer-template  its Envoy bootstrap template; looked for beside it unless given
  --quick          fewer runs, and no more than 1,000 services
  --only           rows whose id begins so: join restart adopt push push-1000 push-5000-same stall memory idle-cpu renewal size version floor dns-mesh dns-foreign capture capture-latency boot
  --json           the result as JSON on standard output; progress goes to standard error
  --profile        run the agent from its sources with --cpu-prof, and leave the profiles there`;

const {values: flags} = parseArgs({
	options: {
		peer: {type: 'string'},
		'peer-template': {type: 'string'},
		quick: {type: 'boolean', default: false},
		only: {type: 'string', multiple: true, default: []},
		json: {type: 'boolean', default: false},
		profile: {type: 'string'},
		help: {type: 'boolean', default: false},
	},
});

async function main(): Promise<void> {
	if (flags.help) return console.log(usage);
	const say = (line: string): void => console.error(`${(performance.now() / 1000).toFixed(1).padStart(6)} s  ${line}`);
	installCleanUp();
	const peer =
		flags.peer === undefined
			? undefined
			: findPeer(resolve(flags.peer), flags['peer-template'] && resolve(flags['peer-template']));
	const profileDirectory = flags.profile === undefined ? undefined : resolve(flags.profile);
	if (profileDirectory) await mkdir(profileDirectory, {recursive: true});
	process.chdir(fileURLToPath(new URL('..', import.meta.url)));
	// What is measured is what the sources say.
	await promisify(execFile)(process.execPath, ['scripts/build.ts']);
	const envoyPath = await ensureEnvoy(say);
	const directory = await mkdtemp(join(tmpdir(), 'onramp-bench-'));
	removeAtEnd(directory);

	const rows: Row[] = [];
	const bench: Bench = {
		directory,
		envoyPath,
		peer,
		profileDirectory,
		isQuick: flags.quick,
		say,
		report: row => {
			if (!isWanted(row.id)) return;
			rows.push(row);
			say(renderRow(row));
		},
		wants: prefix =>
			flags.only.length === 0 || flags.only.some(only => only.startsWith(prefix) || prefix.startsWith(only)),
	};
	for (const measure of [
		measureProgram,
		measureFloors,
		measureStarts,
		measurePushes,
		measureStall,
		measureMemory,
		measureRenewals,
		measureDns,
		measureCapture,
		measureLatency,
		measureBoot,
	])
		await measure(bench);
	if (rows.length === 0) throw new Error(`no row begins with ${flags.only.join(' or ')}`);
	console.log(flags.json ? renderJson(rows, envoyPath, peer?.binaryPath) : `\n${renderTable(rows)}`);
}

const isWanted = (id: string): boolean => flags.only.length === 0 || flags.only.some(only => id.startsWith(only));

function renderJson(rows: readonly Row[], envoy: string, peer: string | undefined): string {
	const machine = {cpu: cpus()[0]?.model, cores: cpus().length, kernel: release(), node: process.version, envoy, peer};
	const results = rows.map(row => {
		const {id, title, unit, onramp, peer: others, note} = row;
		return {id, title, unit, ...figuresOf(row), runs: {onramp, peer: others}, note};
	});
	return JSON.stringify({measuredAt: new Date(), machine, isQuick: flags.quick, rows: results}, undefined, 2);
}

main().then(
	// Open handles must not keep it; what is to be cleaned up is so at exit.
	() => process.exit(0),
	(error: unknown) => {
		console.error(`bench: ${error instanceof Error ? error.message : String(error)}`);
		process.exit(1);
	},
);
