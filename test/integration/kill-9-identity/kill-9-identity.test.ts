import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {mkdtemp, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {verifyPair} from '../../../src/identity/certificate.ts';
import {generateKey} from '../../../src/identity/key.ts';
import {openStore} from '../../../src/identity/store.ts';
import {createCa} from '../../unit/identity/test-ca.ts';

const writer = new URL('./writer.ts', import.meta.url).pathname;
const spiffeId = 'spiffe://cluster.local/ns/bar/sa/vm';
const kills = 60;

test('kill -9 › while generations are written, the next start finds a whole pair, never older than acknowledged', async t => {
	t.timeout(110_000);
	const dir = await mkdtemp(join(tmpdir(), 'onramp-kill-'));
	t.teardown(() => rm(dir, {recursive: true, force: true}));
	const ca = await createCa();
	const pairs = await Promise.all(
		Array.from({length: 8}, async () => {
			const key = await generateKey('ecdsa-p256');
			return {keyPem: key.pem.reveal(), chainPem: await ca.issue(key.privateKey, [spiffeId]), rootsPem: ca.pem};
		}),
	);
	const seed = 20300101;
	const random = mulberry32(seed);
	let written = 0;
	for (let kill = 0; kill < kills; kill++) {
		// Uniform over a few writes, which take about a millisecond each on a fast disk and ten on a slow one.
		const acknowledged = await writeAndKill(dir, pairs, random() * 12);
		const {generations, problems} = await openStore(dir).load();
		const where = `kill ${kill} of seed ${seed}`;
		t.deepEqual(problems, [], where);
		const [newest] = generations;
		t.true(
			newest!.number >= acknowledged.number,
			`${where}: ${newest!.number} found, ${acknowledged.number} acknowledged`,
		);
		t.true(newest!.number <= acknowledged.number + 1, where);
		for (const generation of generations)
			t.notThrows(() => verifyPair(generation, {now: new Date('2030-01-01'), spiffeId}), where);
		if (newest!.number === acknowledged.number) t.is(newest!.chainPem, pairs[acknowledged.index]!.chainPem, where);
		written = newest!.number;
	}
	t.true(written >= kills, 'each life wrote something');
});

/** Lets the writer live until its first acknowledgement and then a little longer; returns the last acknowledgement. */
async function writeAndKill(dir: string, pairs: unknown, extraMs: number): Promise<{number: number; index: number}> {
	const child = spawn(process.execPath, [writer, dir], {stdio: ['pipe', 'pipe', 'inherit']});
	let output = '';
	child.stdout.on('data', data => {
		output += String(data);
	});
	child.stdin.end(JSON.stringify(pairs));
	await Promise.race([
		once(child.stdout, 'data'),
		once(child, 'exit').then(([code]) => {
			throw new Error(`the writer ended with ${code}`);
		}),
	]);
	await new Promise(resolve => setTimeout(resolve, extraMs));
	child.kill('SIGKILL');
	await once(child, 'close');
	const [number, index] = output.trim().split('\n').at(-1)!.split(' ').map(Number);
	return {number: number!, index: index!};
}

function mulberry32(seed: number): () => number {
	let state = seed;
	return () => {
		state = (state + 0x6d2b79f5) | 0;
		let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
		mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
		return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
	};
}
