import {execFile} from 'node:child_process';
import {readdir, stat} from 'node:fs/promises';
import {join} from 'node:path';
import {promisify} from 'node:util';
import type {Bench} from './setup.ts';

const run = promisify(execFile);
const bundle = 'dist/onramp.cjs';

/** Size of what is shipped, and how long the shortest command takes. */
export async function measureProgram(bench: Bench): Promise<void> {
	const {peer} = bench;
	if (bench.wants('size')) {
		const mib = async (path: string) => (await stat(path)).size / 2 ** 20;
		const files = (await readdir('dist')).filter(name => !name.startsWith('.'));
		const onramp = (await Promise.all(files.map(name => mib(join('dist', name))))).reduce((sum, size) => sum + size, 0);
		bench.report({
			id: 'size',
			title: 'size of the program',
			unit: 'MiB',
			onramp: [onramp],
			peer: peer ? [await mib(peer.binaryPath)] : [],
			note: 'onramp without Node',
		});
		bench.report({
			id: 'size-runtime',
			title: 'size of the program with its runtime',
			unit: 'MiB',
			onramp: [onramp + (await mib(process.execPath))],
			peer: peer ? [await mib(peer.binaryPath)] : [],
		});
	}
	if (!bench.wants('version')) return;
	const [onramp, other]: [number[], number[]] = [[], []];
	for (let round = 0; round < (bench.isQuick ? 5 : 15); round++) {
		onramp.push(await time(process.execPath, [bundle, 'version']));
		if (peer) other.push(await time(peer.binaryPath, ['version']));
	}
	bench.report({id: 'version', title: 'onramp version', unit: 'ms', onramp, peer: other});
}

async function time(file: string, args: readonly string[]): Promise<number> {
	const fromMs = performance.now();
	await run(file, args);
	return performance.now() - fromMs;
}
