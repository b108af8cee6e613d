// Runs format, lint, types, unit, booted and integration tests and adds up their counts. Called by scripts/test.
import {spawn} from 'node:child_process';
import {createInterface} from 'node:readline';

interface Step {
	readonly name: string;
	readonly command: readonly string[];
	/** Counts TAP lines; without, the step as a whole is one test. */
	readonly isTap: boolean;
	/** Runs while the next ones do. */
	readonly isBeside?: boolean;
}

const steps: readonly Step[] = [
	{name: 'format and lint', command: ['biome', 'ci', '--reporter=summary'], isTap: false},
	{name: 'types', command: ['tsc'], isTap: false},
	{name: 'unit', command: ['ava', '--tap', 'test/unit/**/*.test.ts'], isTap: true},
	{
		name: 'booted machines',
		command: ['ava', '--tap', '--serial', '--concurrency=1', '--timeout=180s', 'test/booted/**/*.test.ts'],
		isTap: true,
		isBeside: true,
	},
	{
		name: 'integration',
		command: ['ava', '--tap', '--serial', '--concurrency=1', '--timeout=180s', 'test/integration/**/*.test.ts'],
		isTap: true,
	},
];

let passed = 0;
let failed = 0;
let beside: Promise<void> | undefined;
for (const step of steps) {
	// Mostly waiting, on machines and in a network of its own: it need not wait for the others.
	if (step.isBeside) beside = take(step);
	else await take(step);
}
await beside;
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);

async function take(step: Step): Promise<void> {
	const startedMs = performance.now();
	console.log(`── ${step.name}`);
	const result = await run(step);
	passed += result.passed;
	failed += result.failed;
	const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
	console.log(`── ${step.name}: ${result.passed} passed, ${result.failed} failed in ${seconds} s`);
}

async function run({command, isTap}: Step): Promise<{readonly passed: number; readonly failed: number}> {
	const [file, ...args] = command as [string, ...string[]];
	const child = spawn(file, args, {stdio: ['ignore', 'pipe', 'inherit']});
	const lines = createInterface({input: child.stdout});
	const tally = {passed: 0, failed: 0};
	lines.on('line', line => {
		if (!isTap) console.log(line);
		else if (/^ok \d+/.test(line)) tally.passed++;
		else if (/^not ok \d+/.test(line)) {
			tally.failed++;
			console.log(line);
		} else if (!/^(TAP version|1\.\.\d+|# )/.test(line)) console.log(line);
	});
	const code = await new Promise<number>(resolve => child.on('close', end => resolve(end ?? 1)));
	if (!isTap) tally[code === 0 ? 'passed' : 'failed']++;
	// A runner that died without naming a failed test has failed all the same.
	else if (code !== 0 && tally.failed === 0) tally.failed++;
	return tally;
}
