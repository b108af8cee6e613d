import {spawn} from 'node:child_process';
import {mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import type {ExecutionContext} from 'ava';

const main = fileURLToPath(new URL('../../../src/main.ts', import.meta.url));

export interface Outcome {
	readonly code: number | null;
	readonly stdout: string;
	readonly stderr: string;
}

/** Runs the command line as a program, with nothing of our environment, and without a terminal. */
export function onramp(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Outcome> {
	return new Promise(resolve => {
		const child = start(args, env);
		let [stdout, stderr] = ['', ''];
		child.stdout.on('data', chunk => {
			stdout += chunk;
		});
		child.stderr.on('data', chunk => {
			stderr += chunk;
		});
		child.on('close', code => resolve({code, stdout, stderr}));
	});
}

export function start(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
	return spawn(process.execPath, [main, ...args], {
		env: {PATH: process.env['PATH'] ?? '', ...env},
		stdio: ['ignore', 'pipe', 'pipe'],
	});
}

/** A directory with these files, gone after the test. */
export function directoryWith(t: ExecutionContext, files: Readonly<Record<string, string>> = {}): string {
	const directory = mkdtempSync(join(tmpdir(), 'onramp-cli-'));
	t.teardown(() => rmSync(directory, {recursive: true, force: true}));
	for (const [name, text] of Object.entries(files)) writeFileSync(join(directory, name), text);
	return directory;
}
