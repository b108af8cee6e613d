import {execFile, execFileSync} from 'node:child_process';
import {writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {promisify} from 'node:util';
import {killAtEnd} from './cleanup.ts';
import type {Bench} from './setup.ts';

const run = promisify(execFile);
/** A number that nobody has. */
const owner = '15337';

/** Rules of capture put in, replaced and taken away, in a network namespace of the bench's own. */
export async function measureCapture(bench: Bench): Promise<void> {
	if (!bench.wants('capture')) return;
	if (process.getuid?.() !== 0) return bench.say('rows capture are left out: they need root');
	// One each: what one leaves behind is not to be in the way of the other.
	const own = await makeNamespace(`orb${process.pid.toString(36)}o`);
	const other = await makeNamespace(`orb${process.pid.toString(36)}p`);
	try {
		await measure(bench, [own.run, other.run]);
	} finally {
		own.remove();
		other.remove();
	}
}

async function makeNamespace(name: string): Promise<{readonly run: Inside; remove(): void}> {
	const remove = () => {
		try {
			execFileSync('ip', ['netns', 'del', name], {stdio: 'ignore'});
		} catch {
			// Gone already.
		}
	};
	await run('ip', ['netns', 'add', name]);
	killAtEnd(remove);
	for (const line of [
		'link set lo up',
		'link add eth0 type veth peer name eth1',
		'addr add 198.18.0.11/24 dev eth0',
		'addr add 2001:db8::11/64 dev eth0 nodad',
		'link set eth1 up',
		'link set eth0 up',
		'route add default via 198.18.0.1',
	])
		await run('ip', ['-n', name, ...line.split(' ')]);
	return {run: command => run('ip', ['netns', 'exec', name, ...command]), remove};
}

type Inside = (command: readonly string[]) => Promise<unknown>;

async function measure(bench: Bench, inside: readonly [Inside, Inside]): Promise<void> {
	const config = join(bench.directory, 'capture.yaml');
	await writeFile(config, '');
	const flags = [
		...['--config', config, '--namespace', 'bench', '--run-dir', join(bench.directory, 'capture-run')],
		...['--capture-users', owner, '--capture-groups', owner, '--capture-dns', 'servers'],
	];
	const onramp = (...args: readonly string[]) => [process.execPath, 'dist/onramp.cjs', 'capture', ...args, ...flags];
	const excluded = (port: number) => ['--capture-inbound-exclude-ports', String(port)];
	const peer = (...args: readonly string[]) => [
		...[bench.peer?.binaryPath ?? '', 'istio-iptables', '-p', '15001', '-z', '15006', '-u', owner, '-g', owner],
		...['-i', '*', '-b', '*', '-d', '22,15090,15021,15020', '--redirect-dns', '--dual-stack', ...args],
	];
	const times = {apply: [[], []], replace: [[], []], remove: [[], []]} as Record<string, [number[], number[]]>;
	const time = async (row: string, who: 0 | 1, ...commands: readonly (readonly string[])[]) => {
		const startedMs = performance.now();
		for (const command of commands) await inside[who](command);
		times[row]![who].push(performance.now() - startedMs);
	};
	for (let round = 0; round < (bench.isQuick ? 3 : 10); round++) {
		await time('apply', 0, onramp('apply', '--force', ...excluded(1)));
		await time('replace', 0, onramp('apply', '--force', ...excluded(2)));
		await time('remove', 0, onramp('remove'));
		if (!bench.peer) continue;
		await time('apply', 1, peer());
		// Its only way to other rules that does not cut every connection meanwhile.
		await time('replace', 1, peer('--cleanup-only'), peer());
		await time('remove', 1, peer('--cleanup-only'));
	}
	const titles = {
		apply: 'rules of capture, put in',
		replace: 'rules replaced (peer: clean, apply)',
		remove: 'rules removed',
	};
	for (const [row, title] of Object.entries(titles))
		bench.report({
			id: `capture-${row}`,
			title,
			unit: 'ms',
			onramp: times[row]![0],
			peer: times[row]![1],
			note: 'whole command, process start included',
		});
}
