import {execFile, execFileSync} from 'node:child_process';
import {writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {promisify} from 'node:util';
import {toolDirectories} from '../../src/lifecycle/find-program.ts';
import {killAtEnd} from './cleanup.ts';
import type {Bench} from './setup.ts';

const run = promisify(execFile);
/** A number that nobody has. */
const owner = '15337';

/** Rules of capture put in, replaced and taken away, in a network namespace of the bench's own. */
export async function measureCapture(bench: Bench): Promise<void> {
	if (!bench.wants('capture')) return;
	if (process.getuid?.() !== 0) return bench.say('rows capture are left out: they need root');
	for (const way of ways) {
		if (way.suffix === '-native' && !bench.peer) continue; // Ours would be the same again.
		if (!['apply', 'replace', 'remove'].some(row => bench.wants(idOf(row, way)))) continue;
		// One each: what one leaves behind is not to be in the way of the other.
		const own = await makeNamespace(`orb${process.pid.toString(36)}o`);
		const other = await makeNamespace(`orb${process.pid.toString(36)}p`);
		try {
			await measure(bench, way, [own.run, other.run]);
		} catch (error) {
			if (way.suffix === '') throw error;
			bench.say(`rows capture with ${way.title} are left out: ${String(error)}`);
		} finally {
			own.remove();
			other.remove();
		}
	}
}

interface Way {
	readonly suffix: string;
	readonly title: string;
	readonly onramp: readonly string[];
	/** Left to itself the peer takes the tables of iptables-legacy, made by its own look at them, for those in use, and cleans nothing. */
	readonly peer: readonly string[];
	/** Shows what the peer has left. */
	readonly list: readonly string[];
}

const ways: readonly Way[] = [
	{
		suffix: '',
		title: 'nft; peer: iptables-nft',
		onramp: [],
		peer: ['--force-iptables-binary', 'nft'],
		list: ['iptables-nft-save'],
	},
	{
		suffix: '-native',
		title: 'nft; peer: --native-nftables',
		onramp: [],
		peer: ['--native-nftables'],
		list: ['nft', 'list', 'ruleset'],
	},
	{
		suffix: '-legacy',
		title: 'iptables-legacy, both',
		onramp: ['--capture-backend', 'iptables-legacy'],
		peer: ['--force-iptables-binary', 'legacy'],
		list: ['iptables-legacy-save'],
	},
];

const idOf = (row: string, {suffix}: Way): string => `capture-${row}${suffix}`;

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
	// A tool of npm's has the name of one of the system's.
	const env = {...process.env, PATH: toolDirectories.join(':')};
	return {run: command => run('ip', ['netns', 'exec', name, ...command], {env}), remove};
}

type Inside = (command: readonly string[]) => Promise<{readonly stdout: string}>;

async function measure(bench: Bench, way: Way, inside: readonly [Inside, Inside]): Promise<void> {
	const config = join(bench.directory, 'capture.yaml');
	await writeFile(config, '');
	const flags = [
		...['--config', config, '--namespace', 'bench', '--run-dir', join(bench.directory, 'capture-run')],
		...['--capture-users', owner, '--capture-groups', owner, '--capture-dns', 'servers'],
		...way.onramp,
	];
	const onramp = (...args: readonly string[]) => [process.execPath, 'dist/onramp.cjs', 'capture', ...args, ...flags];
	const excluded = (port: number) => ['--capture-inbound-exclude-ports', String(port)];
	const peer = (...args: readonly string[]) => [
		...[bench.peer?.binaryPath ?? '', 'istio-iptables', '-p', '15001', '-z', '15006', '-u', owner, '-g', owner],
		...['-i', '*', '-b', '*', '-d', '22,15090,15021,15020', '--redirect-dns', '--dual-stack'],
		...way.peer,
		...args,
	];
	const refuseLeftovers = async () => {
		const {stdout} = await inside[1](way.list);
		if (/istio/i.test(stdout)) throw new Error('the peer has not cleaned up: its time says nothing');
	};
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
		await refuseLeftovers();
	}
	const titles = {
		apply: 'rules put in',
		replace: 'rules replaced',
		remove: 'rules removed',
	};
	for (const [row, title] of Object.entries(titles))
		bench.report({
			id: idOf(row, way),
			title: `${title} (${way.title})`,
			unit: 'ms',
			onramp: times[row]![0],
			peer: times[row]![1],
			note: row === 'replace' ? 'whole commands; peer: clean, then apply' : 'whole command, process start included',
		});
}
