import {spawnSync} from 'node:child_process';
import {resolve} from 'node:path';
import test from 'ava';
import {ownShare, untouchedFileMappings} from '../../../src/lifecycle/memory.ts';

const mapping = (head: string, anonymousKb: number): string =>
	`${head}\nSize:   8 kB\nRss:   8 kB\nAnonymous:      ${anonymousKb} kB\nVmFlags: rd ex mr\n`;

test('memory › gives back pages of files that this process has not written to, and no others', t => {
	const smaps = [
		mapping('00400000-00402000 r-xp 00000000 fe:00 123   /usr/bin/node', 0),
		mapping('00402000-00404000 r--p 00002000 fe:00 123   /usr/bin/node', 0),
		mapping('00404000-00406000 r--p 00004000 fe:00 123   /usr/bin/node', 4),
		mapping('00406000-00408000 rw-p 00006000 fe:00 123   /usr/bin/node', 0),
		mapping('00408000-0040a000 r-xs 00006000 fe:00 123   /usr/bin/node', 0),
		mapping('7f0000000000-7f0000002000 r--p 00000000 00:00 0 ', 0),
		mapping('7ffd0000-7ffe0000 r-xp 00000000 00:00 0   [vdso]', 0),
	].join('');
	t.deepEqual(untouchedFileMappings(smaps), [
		{start: 0x400000, end: 0x402000},
		{start: 0x402000, end: 0x404000},
	]);
});

test('memory › what is our own is what is resident and of no file', t => {
	t.is(ownShare('301234 12000 9000 8000 0 40000 0\n'), 0.25);
	t.is(ownShare('0 0 0 0 0 0 0\n'), 0);
});

/** V8 begins its own collections eight seconds after a thorough one; the keeper comes in the middle of it. */
const longLife = `
import {runInNewContext} from 'node:vm';
import {setFlagsFromString} from 'node:v8';
import {startMemoryKeeper} from ${JSON.stringify(resolve('src/lifecycle/memory.ts'))};
import {Readiness, systemClock} from ${JSON.stringify(resolve('src/lifecycle/index.ts'))};
setFlagsFromString('--expose-gc');
let left = Array.from({length: 60}, (_, i) => new Array(100_000).fill(i));
runInNewContext('gc')({type: 'major', execution: 'sync'});
left = [];
const readiness = new Readiness(['test']);
const log = {debug() {}};
startMemoryKeeper({readiness, clock: systemClock, log});
setTimeout(() => readiness.gate('test').open(), 6_300);
setTimeout(() => process.exit(0), 12_000);
`;

test('memory › an agent that is ready after ten seconds only does not end by it', t => {
	t.timeout(60_000);
	const child = spawnSync(process.execPath, ['--input-type=module-typescript', '-e', longLife], {encoding: 'utf8'});
	t.is(child.status, 0, `${child.signal}: ${child.stderr}`);
});
