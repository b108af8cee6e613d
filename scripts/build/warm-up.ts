// Runs a bundle through what every start does, so that V8's cache holds the code of it: joins a sandbox with nothing on
// disk, gets ready, and ends; once more with what is on disk then. Called by scripts/build.ts with the launcher's path.
import {spawnSync} from 'node:child_process';
import {chmodSync, mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {dirname, join, resolve} from 'node:path';
import {startSandbox} from '../../src/sandbox/index.ts';
import {LocalWorkload} from '../../src/sandbox/local-workload.ts';

const agentPath = resolve(process.argv[2]!);
const directory = mkdtempSync(join(tmpdir(), 'onramp-build-'));
warmCapture();
const sandbox = await startSandbox({ports: {}});
try {
	const names = {name: 'build', namespace: 'build'};
	sandbox.addWorkloadGroup({...names, serviceAccount: 'build', labels: {app: 'build'}, ports: {http: 8080}});
	sandbox.addServices(3);
	const bundle = await sandbox.writeBundle(join(directory, 'bundle'), {
		group: 'build',
		namespace: 'build',
		ingressAddress: '127.0.0.1',
	});
	const envoyPath = join(directory, 'envoy');
	writeFileSync(
		envoyPath,
		`#!/bin/sh\nexec '${process.execPath}' '${resolve('scripts/build/stand-in-envoy.ts')}' "$@"\n`,
	);
	chmodSync(envoyPath, 0o755);
	for (const isLast of [false, true]) {
		const workload = await LocalWorkload.create({
			name: 'build',
			directory,
			bundle,
			address: '127.0.3.1',
			envoyPath,
			agentPath,
			flags: ['--proxy-drain', '0s', '--proxy-termination-drain', '0s', '--proxy-drain-ceiling', '0s'],
			// The last one: a process writes the caches of all it has loaded.
			env: isLast ? {ONRAMP_CODE_CACHE_OUT: dirname(agentPath)} : {},
		});
		workload.start();
		try {
			await workload.untilReady();
			await workload.stop();
		} finally {
			await workload.destroy();
		}
	}
} finally {
	await sandbox.stop();
	rmSync(directory, {recursive: true, force: true});
}
process.exit(0);

/**
 * Rules in a network namespace that is gone with the command. Where that may not be made, or there is no nft, the code
 * of `onramp capture` is compiled at each start. What the agent's start shares with it is written again after this.
 */
function warmCapture(): void {
	const config = join(directory, 'capture.yaml');
	writeFileSync(config, '');
	const flags = [
		'--config',
		config,
		'--run-dir',
		join(directory, 'run'),
		'--namespace',
		'build',
		'--capture-users',
		'root',
	];
	const isRoot = process.getuid?.() === 0;
	spawnSync(
		'unshare',
		[...(isRoot ? ['-n'] : ['-rn']), process.execPath, agentPath, 'capture', 'apply', '--force', ...flags],
		{stdio: 'ignore', timeout: 20_000, env: {...process.env, ONRAMP_CODE_CACHE_OUT: dirname(agentPath)}},
	);
}
