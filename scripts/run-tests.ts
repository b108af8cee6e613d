// Runs format, lint, types, unit, booted and integration tests and adds up their counts. Called by scripts/test.
import {spawn} from 'node:child_process';
import {globSync} from 'node:fs';
import {basename, resolve} from 'node:path';

interface Part {
	readonly name: string;
	readonly command: readonly string[];
	/** Counts TAP lines; without, the part as a whole is one test. */
	readonly isTap: boolean;
}

interface Result {
	readonly passed: number;
	readonly failed: number;
	readonly seconds: number;
	/** Of what failed, and why others were skipped. */
	readonly output: readonly string[];
}

/** Each file of tests is a process that loads much the same: what Node has made of the sources is kept, by content. */
const env = {...process.env, NODE_COMPILE_CACHE: resolve('.cache/compiled')};

const ava = ['ava', '--tap'];
/** The longest that nothing may happen: the first test of the booted machines makes their image. */
const serially = [...ava, '--serial', '--concurrency=1', '--timeout=400s'];

const first: readonly Part[] = [
	{name: 'format and lint', command: ['biome', 'ci', '--reporter=summary'], isTap: false},
	{name: 'types', command: ['tsc'], isTap: false},
	{name: 'unit', command: [...ava, 'test/unit/**/*.test.ts'], isTap: true},
];
/** One machine after another, each with its whole system: nothing else beside them, or either is late. */
const booted: Part = {name: 'booted machines', command: [...serially, 'test/booted/**/*.test.ts'], isTap: true};
const integration = globSync('test/integration/**/*.test.ts')
	.sort()
	.map(
		(path): Part => ({name: path.slice('test/'.length, -'.test.ts'.length), command: [...serially, path], isTap: true}),
	);
/** Worth starting early, so that none of them is left for the end alone. */
const longest: ReadonlySet<string> = new Set([
	'time-machine',
	'agent',
	'hosts',
	'property',
	'replace',
	'life',
	'flood',
]);
const isLong = ({name}: Part): boolean => longest.has(basename(name));

let passed = 0;
let failed = 0;
for (const part of [...first, booted]) await take(part);
// They wait more than they work, on processes and kernels: two at a time keep two cores busy, more would be late.
const queue = [...integration.filter(isLong), ...integration.filter(part => !isLong(part))];
await Promise.all([drain(), drain()]);
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);

async function drain(): Promise<void> {
	for (let part = queue.shift(); part; part = queue.shift()) await take(part);
}

async function take(part: Part): Promise<void> {
	const result = await run(part);
	passed += result.passed;
	failed += result.failed;
	for (const line of result.output) console.log(line);
	const outcome = `${result.passed} passed, ${result.failed} failed`;
	console.log(`── ${part.name}: ${outcome} in ${result.seconds.toFixed(1)} s`);
}

async function run({command, isTap}: Part): Promise<Result> {
	const [file, ...args] = command as [string, ...string[]];
	const startedMs = performance.now();
	const child = spawn(file, args, {stdio: ['ignore', 'pipe', 'pipe'], env});
	const said: Buffer[] = [];
	for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => said.push(chunk));
	const code = await new Promise<number>(resolve => {
		child.on('error', error => said.push(Buffer.from(`${error.message}\n`)));
		child.on('close', end => resolve(end ?? 1));
	});
	const seconds = (performance.now() - startedMs) / 1000;
	const lines = Buffer.concat(said).toString().split('\n');
	const count = (pattern: RegExp): number => (isTap ? lines.filter(line => pattern.test(line)).length : 0);
	const tally = {passed: count(/^ok \d+/), failed: count(/^not ok \d+/)};
	if (!isTap && code === 0) tally.passed++;
	// A runner that died without naming a failed test has failed all the same.
	if (code !== 0 && tally.failed === 0) tally.failed++;
	const isReason = (line: string): boolean => /^# +skipped: |^ok .*# SKIP$/.test(line);
	const isNoise = (line: string): boolean => isTap && /^(ok \d|TAP version|1\.\.\d|# )/.test(line);
	const output = lines.filter(line => isReason(line) || (tally.failed > 0 && !isNoise(line)));
	return {...tally, seconds, output: tally.failed > 0 ? output : [...new Set(output)]};
}
