// Runs format, lint, types, unit and integration tests one after another and adds up their counts. Called by scripts/test.
import {spawn} from 'node:child_process';
import {createInterface} from 'node:readline';

interface Step {
	readonly name: string;
	readonly command: readonly string[];
	/** Counts TAP lines; without, the step as a whole is one test. */
	readonly isTap: boolean;
}

const steps: readonly Step[] = [
	{name: 'format and lint', command: ['biome', 'ci', '--reporter=summary'], isTap: false},
	{name: 'types', command: ['tsc'], isTap: false},
	{name: 'unit', command: ['ava', '--tap', 'test/unit/**/*.test.ts'], isTap: true},
	{
		name: 'integration',
		command: ['ava', '--tap', '--serial', '--concurrency=1', '--timeout=180s', 'test/integration/**/*.test.ts'],
		isTap: true,
	},
	{
		name: 'booted machines',
		command: ['ava', '--tap', '--serial', '--concurrency=1', '--timeout=180s', 'test/booted/**/*.test.ts'],
		isTap: true,
	},
];

let passed = 0;
let failed = 0;
for (const step of steps) {
	const startedMs = performance.now();
	const before = {passed, failed};
	console.log(`── ${step.name}`);
	const code = await run(step);
	if (!step.isTap) code === 0 ? passed++ : failed++;
	// A runner that died without naming a failed test has failed all the same.
	else if (code !== 0 && failed === before.failed) failed++;
	const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
	console.log(`── ${step.name}: ${passed - before.passed} passed, ${failed - before.failed} failed in ${seconds} s`);
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);

function run({command, isTap}: Step): Promise<number> {
	const [file, ...args] = command as [string, ...string[]];
	const child = spawn(file, args, {stdio: ['ignore', 'pipe', 'inherit']});
	const lines = createInterface({input: child.stdout});
	lines.on('line', line => {
		if (!isTap) console.log(line);
		else if (/^ok \d+/.test(line)) passed++;
		else if (/^not ok \d+/.test(line)) {
			failed++;
			console.log(line);
		} else if (!/^(TAP version|1\.\.\d+|# )/.test(line)) console.log(line);
	});
	return new Promise(resolve => child.on('close', code => resolve(code ?? 1)));
}
